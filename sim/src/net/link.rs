//! Which connection a stream is an end of, and how many bytes went over it: what pairs each message that left with its
//! arrival in the record of a run. The end that connected sends the connection's number ahead of its first bytes; neither
//! program sees it.

use crate::gate::End;
use crate::trace::Flow;

/// Bytes of a connection's number.
const HEADING: usize = 8;

/// One end of a connection.
#[derive(Debug)]
pub(super) struct Link {
    dialled: bool,
    /// Not known to an end that accepted until the first bytes arrive.
    number: Option<u64>,
    /// At the end that connected: what is still to be sent. At the other: what has arrived.
    heading: Vec<u8>,
    sent: u64,
    received: u64,
}

impl Link {
    /// The end that connected.
    pub(super) fn dialled(number: u64) -> Self {
        Self { dialled: true, number: Some(number), heading: number.to_le_bytes().to_vec(), sent: 0, received: 0 }
    }

    /// The end that accepted.
    pub(super) fn accepted() -> Self {
        Self { dialled: false, number: None, heading: Vec::new(), sent: 0, received: 0 }
    }

    /// Its number, once it is known.
    pub(super) const fn number(&self) -> Option<u64> {
        self.number
    }

    pub(super) const fn end(&self) -> End {
        if self.dialled { End::Dialled } else { End::Accepted }
    }

    /// What goes ahead of the first bytes, once.
    pub(super) fn take_heading(&mut self) -> Vec<u8> {
        if self.dialled { core::mem::take(&mut self.heading) } else { Vec::new() }
    }

    pub(super) const fn awaits_heading(&self) -> bool {
        self.number.is_none()
    }

    /// Room for the bytes of the heading that have not arrived.
    pub(super) fn room(&self) -> Vec<u8> {
        vec![0; HEADING - self.heading.len()]
    }

    /// Bytes of the heading have arrived: no more than there was room for.
    pub(super) fn hears(&mut self, part: &[u8]) {
        self.heading.extend_from_slice(part);
        assert!(self.heading.len() <= HEADING, "no more was read than belongs to the heading");
        self.number = self.heading.first_chunk::<HEADING>().map(|word| u64::from_le_bytes(*word));
    }

    /// So many bytes leave.
    pub(super) fn sends(&mut self, length: usize) -> Option<Flow> {
        let from = self.sent;
        self.sent += u64::try_from(length).unwrap_or(u64::MAX);
        self.number.map(|link| Flow { link, forth: self.dialled, from, until: self.sent })
    }

    /// So many bytes have arrived. `None` if there were none.
    pub(super) fn received(&mut self, length: usize) -> Option<Flow> {
        let from = self.received;
        self.received += u64::try_from(length).unwrap_or(u64::MAX);
        let number = self.number.filter(|_| length > 0);
        number.map(|link| Flow { link, forth: !self.dialled, from, until: self.received })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_name_the_same_bytes() {
        let (mut client, mut server) = (Link::dialled(7), Link::accepted());
        let heading = client.take_heading();
        assert_eq!(client.take_heading(), [0; 0], "once only");
        let sent = client.sends(10).unwrap();
        assert_eq!(server.sends(1), None, "not yet known");
        for byte in heading {
            assert!(server.awaits_heading());
            server.hears(&[byte]);
        }
        assert!(!server.awaits_heading());
        assert_eq!(server.received(10), Some(sent));
        assert_eq!(server.received(0), None);
        let answer = server.sends(5);
        assert_eq!(answer, Some(Flow { link: 7, forth: false, from: 1, until: 6 }));
        assert_eq!(client.received(6).map(|flow| flow.until), answer.map(|flow| flow.until));
    }
}
