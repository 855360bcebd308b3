//! How a connection in replication mode proves who we are: trust, a password in clear or as MD5, SCRAM-SHA-256, and under
//! TLS SCRAM-SHA-256-PLUS, which nobody in between can pass on.

use std::io;

use bytes::{Buf, Bytes};
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::frontend;
use sheetanchor_core::error::{Error, Fault, FaultKind, Result};
use sheetanchor_core::refusal::{Code, Refusal};
use tokio_postgres::Config;
use tokio_postgres::config::ChannelBinding;

use super::super::session::{Said, down};
use super::{Replication, said, unexpected};

const STEP: &str = "prove who we are";

/// What a server says when all its connections, or all for replication, are taken.
const TOO_MANY: &str = "53300";

/// How far a proof has come.
#[derive(Default)]
struct Proof {
    scram: Option<sasl::ScramSha256>,
    /// It is bound to the connection, and the server has shown that it knows the password.
    bound: bool,
    plus: bool,
}

impl Replication {
    /// Begins the connection as the user of `config`.
    ///
    /// # Errors
    /// `SA101` if that user may not replicate, `SA112` if the server is starting, stopping or full; faults.
    pub(super) async fn log_in(&mut self, config: &Config) -> Result<()> {
        let Some(user) = config.get_user() else {
            return Err(invalid("the connection names no user, which a connection for replication needs"));
        };
        let parameters = [("user", user), ("replication", "true"), ("application_name", "sheetanchor_archive")];
        self.send(|out| frontend::startup_message(parameters, out)).await?;
        let mut proof = Proof::default();
        loop {
            let (tag, mut body) = self.answer().await?;
            match tag {
                b'R' => self.authenticate(user, config, &mut proof, &mut body).await?,
                b'E' => return Err(log_in_error(user, &said(&body))),
                b'Z' => return Ok(()),
                // What the server says of itself: parameters, the key to cancel with, notices.
                b'S' | b'K' | b'N' => {}
                other => return Err(unexpected("log in", other)),
            }
        }
    }

    /// One step of proving who we are.
    async fn authenticate(&mut self, user: &str, config: &Config, proof: &mut Proof, body: &mut Bytes) -> Result<()> {
        let password = config.get_password().unwrap_or_default();
        let broken = |error: io::Error| invalid(format!("the password of `{user}` does not serve: {error}"));
        let kind = body.try_get_i32().map_err(|_| unexpected(STEP, b'R'))?;
        if matches!(kind, 0 | 3 | 5) && config.get_channel_binding() == ChannelBinding::Require && !proof.bound {
            return Err(invalid(
                "the server does not bind our proof to the connection, which `channel_binding` requires",
            ));
        }
        match (kind, proof.scram.as_mut()) {
            (0, _) => Ok(()),
            (3, _) => self.send(|out| frontend::password_message(password, out)).await,
            (5, _) => {
                let salt = body.first_chunk::<4>().copied().ok_or_else(|| unexpected(STEP, b'R'))?;
                let hash = md5_hash(user.as_bytes(), password, salt);
                self.send(|out| frontend::password_message(hash.as_bytes(), out)).await
            }
            (10, _) => {
                let (mechanism, binding) = self.mechanism(config, body)?;
                proof.plus = mechanism == sasl::SCRAM_SHA_256_PLUS;
                let begun = proof.scram.insert(sasl::ScramSha256::new(password, binding));
                let first = begun.message().to_vec();
                self.send(|out| frontend::sasl_initial_response(mechanism, &first, out)).await
            }
            (11, Some(scram)) => {
                scram.update(body).map_err(broken)?;
                let next = scram.message().to_vec();
                self.send(|out| frontend::sasl_response(&next, out)).await
            }
            // The server proves that it knows the password, too.
            (12, Some(scram)) => {
                scram.finish(body).map_err(broken)?;
                proof.bound = proof.plus;
                Ok(())
            }
            (other, _) => Err(invalid(format!("the server asks for a proof of kind {other}, which is not understood"))),
        }
    }

    /// The strongest mechanism that both sides have.
    fn mechanism(&self, config: &Config, offered: &[u8]) -> Result<(&'static str, sasl::ChannelBinding)> {
        let offers = |wanted: &str| offered.split(|byte| *byte == 0).any(|name| name == wanted.as_bytes());
        let end_point = self.end_point.clone().filter(|_| config.get_channel_binding() != ChannelBinding::Disable);
        match end_point {
            Some(end_point) if offers(sasl::SCRAM_SHA_256_PLUS) => {
                Ok((sasl::SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(end_point)))
            }
            // The server hears that we could have: whoever took its offer away is noticed.
            Some(_) if offers(sasl::SCRAM_SHA_256) => Ok((sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested())),
            None if offers(sasl::SCRAM_SHA_256) => Ok((sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported())),
            Some(_) | None => {
                Err(invalid("the server offers no way to prove who we are that is understood (SCRAM-SHA-256)"))
            }
        }
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Refusal::new(Code::ConfigInvalid, message).into()
}

fn log_in_error(user: &str, said: &Said) -> Error {
    match said.state.as_str() {
        _ if said.is_going() => down(said),
        TOO_MANY => down(said),
        "28000" | "28P01" => {
            invalid(format!("`{user}` may not replicate: {said}; pg_hba.conf needs a line for `replication`"))
        }
        _ => Fault::new(FaultKind::Other, "connect for replication", said.to_string()).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_against_a_login_has_a_code() {
        for (state, code) in [
            ("28000", Some(Code::ConfigInvalid)),
            ("28P01", Some(Code::ConfigInvalid)),
            ("57P01", Some(Code::DatabaseDown)),
            ("57P03", Some(Code::DatabaseDown)),
            ("53300", Some(Code::DatabaseDown)),
            ("XX000", None),
        ] {
            let said = Said { state: state.to_owned(), message: "no".to_owned() };
            assert_eq!(log_in_error("a", &said).refusal().map(|refusal| refusal.code), code, "{state}");
        }
    }
}
