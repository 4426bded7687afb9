//! Django's signed texts, as `django.core.signing` writes them. Pure.
//!
//! A text is `payload:timestamp:signature`. The payload is JSON in base64; behind a dot, compressed JSON.
//! The timestamp is in base 62.

use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use flate2::read::ZlibDecoder;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// What sessions in cookies are signed for.
pub const COOKIES: &str = "django.contrib.sessions.backends.signed_cookies";
/// What sessions in a database are signed for: by `db` and by `cached_db`, whose classes have one name.
pub const ROWS: &str = "django.contrib.sessions.SessionStore";
/// What a password's field is hashed for.
const PASSWORDS: &str = "django.contrib.auth.models.AbstractBaseUser.get_session_auth_hash";
/// Bytes of a session at most, inflated.
const LARGEST: usize = 1024 * 1024;

/// Signs for one purpose: the key in use first, then those before it.
pub struct Signer(Vec<[u8; 32]>);

/// What a signed text says.
#[derive(Debug, PartialEq, Eq)]
pub struct Signed {
    /// The payload: JSON.
    pub data: Vec<u8>,
    /// When it was signed, in seconds since 1970.
    pub at: i64,
}

/// Why a text is not good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// Whoever wrote it does not know the secret key.
    Signature,
    /// It is signed, and cannot be read.
    Content,
}

impl Signer {
    /// For texts with this salt.
    pub fn of_texts(salt: &str, secrets: &[Vec<u8>]) -> Self {
        Self::new(&format!("{salt}signer"), secrets)
    }

    /// For the fields of passwords.
    pub fn of_passwords(secrets: &[Vec<u8>]) -> Self {
        Self::new(PASSWORDS, secrets)
    }

    fn new(salt: &str, secrets: &[Vec<u8>]) -> Self {
        let key = |secret: &Vec<u8>| -> [u8; 32] {
            Sha256::new().chain_update(salt).chain_update(secret).finalize().into()
        };
        Self(secrets.iter().map(key).collect())
    }

    /// True if one of the keys makes this of the value. Takes as long for every wrong one.
    fn makes(&self, value: &str, signature: &str, write: fn(&[u8]) -> String) -> bool {
        let is_made = |key: &[u8; 32]| {
            let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length will do");
            mac.update(value.as_bytes());
            let made = write(&mac.finalize().into_bytes());
            bool::from(made.as_bytes().ct_eq(signature.as_bytes()))
        };
        self.0.iter().any(is_made)
    }

    /// Reads a signed text. Its age is the caller's to judge.
    pub fn read(&self, text: &str) -> Result<Signed, Bad> {
        let (value, signature) = text.rsplit_once(':').ok_or(Bad::Signature)?;
        if !self.makes(value, signature, |bytes| URL_SAFE_NO_PAD.encode(bytes)) {
            return Err(Bad::Signature);
        }
        let (payload, timestamp) = value.rsplit_once(':').ok_or(Bad::Content)?;
        let at = base62(timestamp).ok_or(Bad::Content)?;
        let (payload, is_compressed) = match payload.strip_prefix('.') {
            Some(payload) => (payload, true),
            None => (payload, false),
        };
        let data = URL_SAFE_NO_PAD.decode(payload).map_err(|_| Bad::Content)?;
        let data = if is_compressed { inflate(&data) } else { Some(data) };
        let data = data.filter(|data| data.len() <= LARGEST).ok_or(Bad::Content)?;
        Ok(Signed { data, at })
    }

    /// True if this is the hash of a password's field that a session keeps.
    pub fn is_hash(&self, password: &str, hash: &str) -> bool {
        self.makes(password, hash, |bytes| bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

fn base62(text: &str) -> Option<i64> {
    let digit = |byte| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'A'..=b'Z' => Some(byte - b'A' + 10),
        b'a'..=b'z' => Some(byte - b'a' + 36),
        _ => None,
    };
    let add = |sum: i64, byte| sum.checked_mul(62)?.checked_add(digit(byte)?.into());
    if text.is_empty() { None } else { text.bytes().try_fold(0, add) }
}

/// None for what is damaged, and for what has more than one byte more than the largest.
fn inflate(data: &[u8]) -> Option<Vec<u8>> {
    let mut inflated = Vec::new();
    ZlibDecoder::new(data).take(LARGEST as u64 + 1).read_to_end(&mut inflated).ok()?;
    Some(inflated)
}

/// What Django wrote, for tests: with these keys, at [`AT`](vectors::AT) and a quarter of a second.
#[cfg(test)]
pub mod vectors {
    /// SECRET_KEY.
    pub const SECRET: &str = "zephserver vectors: not a secret of anybody's";
    /// 2026-01-01T00:00:00Z.
    pub const AT: i64 = 1_767_225_600;
    /// The password's field of user 7, `ann`.
    pub const PASSWORD: &str = "pbkdf2_sha256$600000$salt$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    /// Its hash, the same in all versions.
    pub const HASH: &str = "26b7cd65a62d1ab5125e97b1f6ce3de099d839d09fc6e831c00d39f4ca6c0d2e";
    /// A login of `ann`: Django's version, its session as a cookie, and its session in a row.
    pub const LOGINS: [(&str, &str, &str); 3] = [
        (
            "4.2.30",
            ".eJxVjjsOwjAQRO_iGln-xHZMSc8ZrPXumgRQIsVJhbg7jkgB7byZp3mJBNs6pK3ykkYSZxHE6TfLgA-edkB3mG6zxHlalzHLvSIPWuV1Jn5eju6fYIA6tLXxOSB5B96Qhuy0cRxD1sUjW2IVI_U2kooFPfdWo1JkY-kQPCoy3KTfA83VSSOtEu8PFgA87g:1vb66i:0g70zNxy1doB37gZAlds6DAQc1eOBvf338BJ5Ze0FrQ",
            ".eJxVjjsOwjAQRO_iGln-xHZMSc8ZrPXumgRQIsVJhbg7jkgB7byZp3mJBNs6pK3ykkYSZxHE6TfLgA-edkB3mG6zxHlalzHLvSIPWuV1Jn5eju6fYIA6tLXxOSB5B96Qhuy0cRxD1sUjW2IVI_U2kooFPfdWo1JkY-kQPCoy3KTfA83VSSOtEu8PFgA87g:1vb66i:_g2_jabrXoxkv5ArQRc56qATt5jU3FRuOk3Ux78NbpQ",
        ),
        (
            "5.2.19",
            ".eJxVjs0OgjAQhN-lZ9P0x7asR-88A9nubgU1kFA4Gd9diBz0Ot_Ml3mpDtel79YqczewuqikTr9ZRnrIuAO-43ibNE3jMg9Z7xV90KrbieV5Pbp_gh5rv61dzIk4BoyOLeZgXRBI2ZZI4lkMADce2EChKI23ZAx7KGfCSIadbNLvgc0VtNMW1PsDFhs89g:1vb66i:cvdMQofUwthsSp7U4WrOxphTFI_xQVp-Cnk9ygVlm3g",
            ".eJxVjs0OgjAQhN-lZ9P0x7asR-88A9nubgU1kFA4Gd9diBz0Ot_Ml3mpDtel79YqczewuqikTr9ZRnrIuAO-43ibNE3jMg9Z7xV90KrbieV5Pbp_gh5rv61dzIk4BoyOLeZgXRBI2ZZI4lkMADce2EChKI23ZAx7KGfCSIadbNLvgc0VtNMW1PsDFhs89g:1vb66i:pl8rjeAkZcLNgu8s9dJbtJ4n-wQMccRh-g2sxLm2Mj4",
        ),
        (
            "6.1.3",
            ".eJxVjs0OgjAQhN-lZ9P0Rxbq0TvP0Gx3F4uaklA4Gd9diBz0Ot_Ml3mpiOuS41pljiOri2rV6TdLSA8pO-A7ltukaSrLPCa9V_RBq-4nluf16P4JMta8rR2klhgaBMcWU2NdI6FNdgASz2JC4M4HNmEgkM5bMoZ9GM6EQIadbNLvgc0F2mqv3h_ZSzy_:1vb66i:ddIqYNBOvtUmE9qGGeW4shDjiOpJWFy3L2cv-N1lLBo",
            ".eJxVjs0OgjAQhN-lZ9P0Rxbq0TvP0Gx3F4uaklA4Gd9diBz0Ot_Ml3mpiOuS41pljiOri2rV6TdLSA8pO-A7ltukaSrLPCa9V_RBq-4nluf16P4JMta8rR2klhgaBMcWU2NdI6FNdgASz2JC4M4HNmEgkM5bMoZ9GM6EQIadbNLvgc0F2mqv3h_ZSzy_:1vb66i:rx3vBozOuMAU-yOLlj9tFmWSybaZPqnp9zcykp6KFFA",
        ),
    ];
    /// `{"a":1}`, not compressed.
    pub const SMALL: &str = "eyJhIjoxfQ:1vb66i:MTKmjwibBgWc4Vg2UhD2CGqkRnWgUu4hTjepbRwUqTE";
    /// `{"_session_expiry":60}`
    pub const SIXTY_SECONDS: &str =
        "eyJfc2Vzc2lvbl9leHBpcnkiOjYwfQ:1vb66i:-mcl4CIqZAR7jZtxtSxoYk2FSOGwwgd4hAXgGB4gfcc";
    /// `{"_session_expiry":"2026-01-01T00:05:00.123456+00:00"}`
    pub const FIVE_MINUTES: &str = "eyJfc2Vzc2lvbl9leHBpcnkiOiIyMDI2LTAxLTAxVDAwOjA1OjAwLjEyMzQ1NiswMDowMCJ9:1vb66i:Y7fQO9m4xtM6cUs-H8NZpwMf4hqd3PJOy7WwQ00XXN0";
}

#[cfg(test)]
mod tests {
    use super::vectors::{AT, HASH, LOGINS, PASSWORD, SECRET, SMALL};
    use super::*;

    fn secrets(texts: &[&str]) -> Vec<Vec<u8>> {
        texts.iter().map(|text| text.as_bytes().to_vec()).collect()
    }

    fn signer(salt: &str) -> Signer {
        Signer::of_texts(salt, &secrets(&[SECRET]))
    }

    /// A text that we sign ourselves, for what Django does not write.
    fn sign(value: &str) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(&signer(COOKIES).0[0]).unwrap();
        mac.update(value.as_bytes());
        format!("{value}:{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
    }

    #[test]
    fn what_django_signed_is_read() {
        for (version, cookie, row) in LOGINS {
            assert!(cookie.starts_with('.'), "it is compressed");
            let from_cookie = signer(COOKIES).read(cookie).unwrap();
            assert_eq!(signer(ROWS).read(row).unwrap(), from_cookie, "{version}");
            let text = String::from_utf8(from_cookie.data).unwrap();
            assert!(text.contains("\"_auth_user_id\":\"7\"") && text.contains(HASH), "{version}: {text}");
            assert!(text.contains(&format!("\"django\":\"{version}\"")), "{text}");
            assert_eq!(from_cookie.at, AT);
        }
        assert_eq!(signer(COOKIES).read(SMALL), Ok(Signed { data: br#"{"a":1}"#.to_vec(), at: AT }));
    }

    #[test]
    fn what_others_signed_is_not_read() {
        let (_, cookie, row) = LOGINS[1];
        assert_eq!(signer(COOKIES).read(row), Err(Bad::Signature), "for another purpose");
        let other = Signer::of_texts(COOKIES, &secrets(&["another key"]));
        assert_eq!(other.read(cookie), Err(Bad::Signature));
        let (value, signature) = cookie.rsplit_once(':').unwrap();
        let (payload, _) = value.rsplit_once(':').unwrap();
        let forged = [
            String::new(),
            ":".into(),
            "::".into(),
            value.into(),
            format!("{value}:"),
            format!("{value}:{signature}="),
            format!("{value}:{}", &signature[1..]),
            format!("{payload}:1vb66j:{signature}"),
            cookie.replacen('e', "f", 1),
            format!("{value}:{}", signature.to_lowercase()),
        ];
        for text in forged {
            assert_eq!(signer(COOKIES).read(&text), Err(Bad::Signature), "{text}");
        }
    }

    #[test]
    fn keys_before_are_good_still() {
        let rotated = Signer::of_texts(COOKIES, &secrets(&["a new key", "one between", SECRET]));
        assert!(LOGINS.iter().all(|(_, cookie, _)| rotated.read(cookie).is_ok()));
        let rotated = Signer::of_passwords(&secrets(&["a new key", SECRET]));
        assert!(rotated.is_hash(PASSWORD, HASH));
    }

    #[test]
    fn a_hash_is_that_of_its_password_only() {
        let signer = Signer::of_passwords(&secrets(&[SECRET]));
        assert!(signer.is_hash(PASSWORD, HASH));
        for (password, hash) in [("!", HASH), (PASSWORD, ""), (PASSWORD, &HASH[1..])] {
            assert!(!signer.is_hash(password, hash));
        }
        assert!(!signer.is_hash(PASSWORD, &HASH.to_uppercase()));
    }

    #[test]
    fn what_is_signed_and_makes_no_sense_is_bad() {
        // A signature without a timestamp; no base 62; too large a number; no base 64; no zlib.
        let overflow = format!("e30:{}", "z".repeat(12));
        for value in ["e30", "e30:", "e30:-1", "e30:1 ", &overflow, "e3=:1vb66i", "é:1vb66i", ".e30:1vb66i"]
        {
            assert_eq!(signer(COOKIES).read(&sign(value)), Err(Bad::Content), "{value}");
        }
        assert!(signer(COOKIES).read(&sign("e30:1vb66i")).is_ok());
    }

    #[test]
    fn a_bomb_is_not_inflated() {
        use flate2::Compression;
        let compressed = |size: usize| {
            let mut data = Vec::new();
            let zeros = vec![b'0'; size];
            flate2::read::ZlibEncoder::new(&zeros[..], Compression::best()).read_to_end(&mut data).unwrap();
            sign(&format!(".{}:1vb66i", URL_SAFE_NO_PAD.encode(data)))
        };
        assert!(compressed(16 * LARGEST).len() < LARGEST);
        assert_eq!(signer(COOKIES).read(&compressed(16 * LARGEST)), Err(Bad::Content));
        assert_eq!(signer(COOKIES).read(&compressed(LARGEST + 1)), Err(Bad::Content));
        assert_eq!(signer(COOKIES).read(&compressed(LARGEST)).unwrap().data.len(), LARGEST);
    }
}
