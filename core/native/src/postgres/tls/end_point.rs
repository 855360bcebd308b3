//! What a proof over TLS is bound to: RFC 5929, `tls-server-end-point`.

use sha2::{Digest, Sha256, Sha384, Sha512};

/// The hash that the certificate's own signature uses; SHA-256 in place of MD5 and SHA-1.
pub(super) fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    // Certificate ::= SEQUENCE { tbsCertificate SEQUENCE, signatureAlgorithm SEQUENCE { algorithm OID, ... }, ... }
    let (SEQUENCE, whole, _) = element(certificate)? else { return None };
    let (SEQUENCE, _, rest) = element(whole)? else { return None };
    let (SEQUENCE, algorithm, _) = element(rest)? else { return None };
    let (OBJECT_ID, name, _) = element(algorithm)? else { return None };
    match (name.strip_prefix(RSA_WITH), name.strip_prefix(ECDSA_WITH_SHA2)) {
        (Some([4 | 5 | 11]), None) | (None, Some([2])) => Some(Sha256::digest(certificate).to_vec()),
        (Some([12]), None) | (None, Some([3])) => Some(Sha384::digest(certificate).to_vec()),
        (Some([13]), None) | (None, Some([4])) => Some(Sha512::digest(certificate).to_vec()),
        _ if name == ECDSA_WITH_SHA1 => Some(Sha256::digest(certificate).to_vec()),
        _ => None,
    }
}

const SEQUENCE: u8 = 0x30;
const OBJECT_ID: u8 = 0x06;

/// 1.2.840.113549.1.1, 1.2.840.10045.4.3 and 1.2.840.10045.4.1, as DER has them.
const RSA_WITH: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1];
const ECDSA_WITH_SHA2: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3];
const ECDSA_WITH_SHA1: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1];

/// The first element of some DER: its tag, what it holds, and what follows.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match *first {
        short @ ..0x80 => (usize::from(short), rest),
        long => {
            let (digits, rest) = rest.split_at_checked(usize::from(long & 0x7f))?;
            let mut digits = digits.iter().skip_while(|digit| **digit == 0);
            let length =
                digits.try_fold(0_usize, |length, digit| length.checked_mul(256)?.checked_add(usize::from(*digit)))?;
            (length, rest)
        }
    };
    let (held, rest) = rest.split_at_checked(length)?;
    Some((*tag, held, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_of_der_are_told_apart_and_what_is_cut_short_is_none() {
        assert_eq!(element(&[6, 2, 1, 2, 9]), Some((6, &[1, 2][..], &[9][..])));
        let mut long = vec![SEQUENCE, 0x82, 1, 0];
        long.extend([7; 256]);
        assert_eq!(element(&long), Some((SEQUENCE, &[7; 256][..], &[][..])));
        long.pop();
        assert_eq!(element(&long), None);
        for broken in [&[][..], &[6], &[6, 0x84, 1], &[6, 0x89, 255, 255, 255, 255, 255, 255, 255, 255, 255]] {
            assert_eq!(element(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn a_proof_is_bound_by_the_hash_of_the_certificates_own_signature() {
        let certificate = |oid: &[u8]| {
            let mut algorithm = vec![OBJECT_ID, u8::try_from(oid.len()).unwrap()];
            algorithm.extend(oid);
            let mut whole = vec![SEQUENCE, 1, 0, SEQUENCE, u8::try_from(algorithm.len()).unwrap()];
            whole.extend(algorithm);
            let mut der = vec![SEQUENCE, u8::try_from(whole.len()).unwrap()];
            der.extend(whole);
            der
        };
        let length =
            |start: &[u8], last: &[u8]| end_point(&certificate(&[start, last].concat())).map(|hash| hash.len());
        for (start, last, expected) in [
            (RSA_WITH, &[5][..], Some(32)),
            (RSA_WITH, &[11], Some(32)),
            (RSA_WITH, &[12], Some(48)),
            (RSA_WITH, &[13], Some(64)),
            // RSASSA-PSS says its hash elsewhere.
            (RSA_WITH, &[10], None),
            (ECDSA_WITH_SHA1, &[], Some(32)),
            (ECDSA_WITH_SHA2, &[2], Some(32)),
            (ECDSA_WITH_SHA2, &[3], Some(48)),
            (ECDSA_WITH_SHA2, &[4], Some(64)),
            // Ed25519.
            (&[0x2b, 0x65, 0x70], &[], None),
        ] {
            assert_eq!(length(start, last), expected, "{start:?} {last:?}");
        }
    }
}
