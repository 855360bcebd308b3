//! Where a server is and how safely it is spoken to, as its connection string says: PostgreSQL's manual, "Connection
//! Strings". What the crate that speaks SQL does not know of one (`verify-ca`, `verify-full`, `sslrootcert`) is read here.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::Duration;

use sheetanchor_core::refusal::{Code, Refusal};
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, SslNegotiation};

use super::tls::{Safety, Tls};
use crate::net::Watch;

/// The port where a connection names none.
const USUAL_PORT: u16 = 5432;

/// When the crate that speaks SQL has a silent server asked whether it is there, where a connection does not say.
const UNSAID_ASK_AFTER: Duration = Duration::from_hours(2);

/// What a URL starts with.
const URL_STARTS: [&str; 2] = ["postgresql://", "postgres://"];

/// A connection string that was understood.
#[derive(Clone, Debug)]
pub(super) struct Target {
    config: Config,
    tls: Tls,
}

/// One place where the server may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Called<'a> {
    /// Its name, or the folder of its socket.
    pub host: &'a Host,
    /// Its address, where that is said beside its name.
    pub address: Option<IpAddr>,
    /// Its port.
    pub port: u16,
}

impl Target {
    /// Reads a connection string. What is said against it does not quote it: it may hold a password.
    ///
    /// # Errors
    /// `SA101` if it is none, names no host, or says what cannot be held to.
    pub(super) fn parse(connection: &str) -> Result<Self, Refusal> {
        let invalid = |message: String| Refusal::new(Code::ConfigInvalid, message);
        let parts = split(connection).ok_or_else(|| invalid("it is not valid".to_owned()))?;
        let mut config: Config = parts.others.parse().map_err(|error| invalid(format!("it is not valid: {error}")))?;
        if config.get_hosts().is_empty() {
            return Err(invalid("it names no host".to_owned()));
        }
        if config.get_ssl_negotiation() != SslNegotiation::Postgres {
            return Err(invalid("`sslnegotiation` other than postgres is not supported".to_owned()));
        }
        let (tcp, unix): (Vec<&Host>, Vec<&Host>) =
            config.get_hosts().iter().partition(|host| matches!(host, Host::Tcp(_)));
        let mut tls = Tls::read(parts.mode.as_deref(), parts.roots)?;
        if !unix.is_empty() {
            if !tcp.is_empty() && tls.safety() > Safety::Prefer {
                let message = format!("`sslmode` {} for hosts of which some are Unix sockets", tls.safety().word());
                return Err(invalid(message));
            }
            // There is no TLS over Unix sockets, whatever the mode.
            tls = Tls::none();
        }
        config.ssl_mode(tls.safety().negotiated());
        watch_over(&mut config);
        Ok(Self { config, tls })
    }

    /// A target without TLS: over a Unix socket.
    pub(super) fn over_socket(mut config: Config) -> Self {
        config.ssl_mode(SslMode::Disable);
        Self { config, tls: Tls::none() }
    }

    /// The same server, in another of its databases.
    pub(super) fn in_database(mut self, name: &str) -> Self {
        self.config.dbname(name);
        self
    }

    /// The same server, as another of its roles.
    pub(super) fn of_role(mut self, name: &str) -> Self {
        self.config.user(name);
        self
    }

    /// What the crate that speaks SQL is told.
    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// How safely the server is spoken to.
    pub(super) fn tls(&self) -> &Tls {
        &self.tls
    }

    /// How a connection over TCP is watched over: `keepalives` and what goes with it, and `tcp_user_timeout`.
    pub(super) fn watch(&self) -> Watch {
        let config = &self.config;
        Watch {
            ask_after: config.get_keepalives().then(|| config.get_keepalives_idle()).filter(|after| !after.is_zero()),
            ask_every: config.get_keepalives_interval().unwrap_or(Watch::USUAL.ask_every),
            asks_max: config.get_keepalives_retries().unwrap_or(Watch::USUAL.asks_max),
            unheard_max: config.get_tcp_user_timeout().copied().unwrap_or(Watch::USUAL.unheard_max),
        }
    }

    /// Every place where the server may be, in order.
    pub(super) fn places(&self) -> impl Iterator<Item = Called<'_>> {
        let (ports, addresses) = (self.config.get_ports(), self.config.get_hostaddrs());
        self.config.get_hosts().iter().enumerate().map(move |(index, host)| Called {
            host,
            address: addresses.get(index).copied(),
            port: ports.get(index).or(ports.first()).copied().unwrap_or(USUAL_PORT),
        })
    }
}

/// A server whose host is gone is noticed as soon as an agent whose is, unless the connection says otherwise.
fn watch_over(config: &mut Config) {
    let usual = Watch::USUAL;
    if let Some(after) = usual.ask_after.filter(|_| config.get_keepalives_idle() == UNSAID_ASK_AFTER) {
        config.keepalives_idle(after);
    }
    if config.get_keepalives_interval().is_none() {
        config.keepalives_interval(usual.ask_every);
    }
    if config.get_keepalives_retries().is_none() {
        config.keepalives_retries(usual.asks_max);
    }
    if config.get_tcp_user_timeout().is_none() {
        config.tcp_user_timeout(usual.unheard_max);
    }
}

/// A connection string without what is read here, and that.
#[derive(Debug, Default, PartialEq, Eq)]
struct Parts {
    others: String,
    mode: Option<String>,
    roots: Option<String>,
}

impl Parts {
    /// Takes a parameter, if it is one that is read here; the last one of a name counts.
    fn take(&mut self, key: &str, value: &str) -> bool {
        let place = match key {
            "sslmode" => &mut self.mode,
            "sslrootcert" => &mut self.roots,
            _ => return false,
        };
        *place = Some(value.to_owned());
        true
    }
}

fn split(connection: &str) -> Option<Parts> {
    if URL_STARTS.iter().any(|start| connection.starts_with(start)) {
        split_url(connection)
    } else {
        split_words(connection)
    }
}

/// `key=value` pairs: values may be quoted, and `\` takes away the meaning of what follows.
fn split_words(connection: &str) -> Option<Parts> {
    let mut parts = Parts::default();
    let mut rest = connection.trim_start();
    while !rest.is_empty() {
        let pair = rest;
        let (key, after) = rest.split_once('=')?;
        let (value, after) = word(after.trim_start())?;
        if !parts.take(key.trim(), &value) {
            parts.others.push_str(pair.get(..pair.len().checked_sub(after.len())?)?);
            parts.others.push(' ');
        }
        rest = after.trim_start();
    }
    Some(parts)
}

/// A value at the start of `text`, and what follows it.
fn word(text: &str) -> Option<(String, &str)> {
    let quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut letters = text.char_indices().skip(usize::from(quoted));
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\\' => value.push(letters.next()?.1),
            '\'' if quoted => return Some((value, text.get(at.checked_add(1)?..)?)),
            _ if !quoted && letter.is_whitespace() => return Some((value, text.get(at..)?)),
            _ => value.push(letter),
        }
    }
    (!quoted).then_some((value, ""))
}

/// A URL: what is read here is among what follows its `?`.
fn split_url(connection: &str) -> Option<Parts> {
    // A password may hold a `?`.
    let host_at = connection.find('@').map_or(0, |at| at.saturating_add(1));
    let Some(query_at) = connection.get(host_at..)?.find('?').map(|at| at.saturating_add(host_at)) else {
        return Some(Parts { others: connection.to_owned(), ..Parts::default() });
    };
    let (place, query) = (connection.get(..query_at)?, connection.get(query_at.checked_add(1)?..)?);
    let mut parts = Parts { others: place.to_owned(), ..Parts::default() };
    let mut mark = '?';
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let taken = match pair.split_once('=') {
            Some((key, value)) => parts.take(key, &decoded(value)?),
            None => false,
        };
        if !taken {
            parts.others.push(mark);
            parts.others.push_str(pair);
            mark = '&';
        }
    }
    Some(parts)
}

/// `%2F` is `/`.
fn decoded(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut pieces = text.split('%');
    bytes.extend_from_slice(pieces.next()?.as_bytes());
    for piece in pieces {
        bytes.push(u8::from_str_radix(piece.get(..2)?, 16).ok()?);
        bytes.extend_from_slice(piece.get(2..)?.as_bytes());
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(others: &str, mode: Option<&str>, roots: Option<&str>) -> Parts {
        Parts { others: others.to_owned(), mode: mode.map(str::to_owned), roots: roots.map(str::to_owned) }
    }

    #[test]
    fn what_is_said_of_tls_is_taken_out_of_a_connection_string() {
        for (connection, expected) in [
            ("host=a  port = 1", Some(parts("host=a port = 1 ", None, None))),
            ("sslmode=require host=a", Some(parts("host=a ", Some("require"), None))),
            ("host=a sslmode = 'verify-full' user=b", Some(parts("host=a user=b ", Some("verify-full"), None))),
            (r"sslrootcert='/a b/it\'s' host=a", Some(parts("host=a ", None, Some("/a b/it's")))),
            (
                r"sslrootcert=/a\ b password='sslmode=x' host=a",
                Some(parts("password='sslmode=x' host=a ", None, Some("/a b"))),
            ),
            ("password='\\'' host=a", Some(parts("password='\\'' host=a ", None, None))),
            ("host=a sslmode=prefer sslmode=disable", Some(parts("host=a ", Some("disable"), None))),
            ("host=a password='open", None),
            ("host=a sslmode", None),
            ("postgresql://u:p?w@h:1/d", Some(parts("postgresql://u:p?w@h:1/d", None, None))),
            ("postgres://h/d?sslmode=verify-ca", Some(parts("postgres://h/d", Some("verify-ca"), None))),
            (
                "postgres://u@h/d?user=x&sslrootcert=%2Fa%20b&sslmode=require&connect_timeout=3",
                Some(parts("postgres://u@h/d?user=x&connect_timeout=3", Some("require"), Some("/a b"))),
            ),
            ("postgres://h/d?sslrootcert=%2", None),
        ] {
            assert_eq!(split(connection), expected, "{connection}");
        }
    }

    #[test]
    fn every_place_has_its_port_and_address() {
        let target = Target::parse("host=a,b hostaddr=127.0.0.1,127.0.0.2 port=1,2").unwrap();
        let found: Vec<_> = target.places().map(|place| (place.address.unwrap().to_string(), place.port)).collect();
        assert_eq!(found, [("127.0.0.1".to_owned(), 1), ("127.0.0.2".to_owned(), 2)]);
        let target = Target::parse("host=a,b port=7").unwrap();
        assert_eq!(target.places().map(|place| place.port).collect::<Vec<_>>(), [7, 7]);
        assert_eq!(Target::parse("host=/run").unwrap().places().next().unwrap().port, USUAL_PORT);
    }

    #[test]
    fn a_server_is_watched_over_as_the_connection_says_or_as_usual() {
        let watch = |connection: &str| Target::parse(connection).unwrap().watch();
        let seconds = Duration::from_secs;
        assert_eq!(watch("host=a"), Watch::USUAL);
        assert_eq!(watch("host=a keepalives=0"), Watch { ask_after: None, ..Watch::USUAL });
        assert_eq!(watch("host=a keepalives_idle=7"), Watch { ask_after: Some(seconds(7)), ..Watch::USUAL });
        let said = Watch { ask_every: seconds(9), asks_max: 2, ..Watch::USUAL };
        assert_eq!(watch("host=a keepalives_interval=9 keepalives_retries=2"), said);
        assert_eq!(watch("host=a tcp_user_timeout=60"), Watch { unheard_max: seconds(60), ..Watch::USUAL });
    }

    #[test]
    fn a_mode_is_held_to_or_refused() {
        for (connection, safety) in [
            ("host=a", Safety::Prefer),
            ("host=a sslmode=disable", Safety::Disable),
            ("host=a sslmode=require", Safety::Require),
            // As libpq has it, whoever names an authority means it.
            ("host=a sslmode=require sslrootcert=/ca", Safety::VerifyCa),
            ("host=a sslmode=verify-ca sslrootcert=/ca", Safety::VerifyCa),
            ("host=a sslmode=verify-full sslrootcert=/ca", Safety::VerifyFull),
            ("postgres://a/d?sslmode=verify-full&sslrootcert=%2Fca", Safety::VerifyFull),
            ("host=/run sslmode=verify-full sslrootcert=/ca", Safety::Disable),
            ("host=/run,a", Safety::Disable),
        ] {
            assert_eq!(Target::parse(connection).unwrap().tls().safety(), safety, "{connection}");
        }
        for connection in [
            "port=1",
            "host=a sslmode=allow",
            "host=a sslmode=verify",
            "host=a sslmode=verify-ca",
            "host=a sslmode=verify-full",
            "host=a sslmode=verify-full sslrootcert=system",
            "host=a sslcert=/mine",
            "host=a sslnegotiation=direct sslmode=require",
            "host=/run,a sslmode=require",
        ] {
            let refused = Target::parse(connection).unwrap_err();
            assert_eq!(refused.code, Code::ConfigInvalid, "{connection}");
        }
    }
}
