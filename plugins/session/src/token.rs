//! Signed tokens (RFC 7519): who made one knows the key, and says who its bearer is until when.

use std::path::Path;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use serde::Deserialize;
use serde_json::{Number, Value};
use zephserver_plugin::contract::session::{Identity, User};
use zephserver_plugin::{Error, Result, tracing};

/// A key of fewer bytes can be guessed (RFC 7518, section 3.2).
const SHORT_SECRET: usize = 32;

/// The table `[session.token]`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    algorithm: Option<String>,
    secret: Option<String>,
    secret_file: Option<String>,
    public_key_file: Option<String>,
    iss: Option<String>,
    aud: Option<String>,
    #[serde(default)]
    leeway: u64,
}

/// Reads tokens.
pub struct Tokens {
    key: DecodingKey,
    validation: Validation,
}

#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    sub: Option<Subject>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    exp: f64,
    #[serde(default)]
    iat: Value,
}

/// Many systems number their users.
#[derive(Deserialize)]
#[serde(untagged)]
enum Subject {
    Text(String),
    Number(Number),
}

impl Tokens {
    /// Reads keys and rules.
    pub fn new(settings: Settings) -> Result<Self> {
        let wrong = |what: &str| Error::invalid(format!("[session.token] {what}"));
        let Settings { secret, secret_file, public_key_file, .. } = settings;
        let (algorithm, key) = match settings.algorithm.as_deref() {
            Some("HS256") => {
                let secret = match (secret, secret_file) {
                    (Some(secret), None) => secret.into_bytes(),
                    (None, Some(file)) => read_secret(Path::new(&file))?,
                    _ => return Err(wrong("HS256 needs either `secret` or `secret_file`")),
                };
                if public_key_file.is_some() {
                    return Err(wrong("`public_key_file` is for EdDSA"));
                }
                if secret.is_empty() {
                    return Err(wrong("the secret is empty"));
                }
                if secret.len() < SHORT_SECRET {
                    tracing::warn!(
                        "[session.token] the secret is shorter than {SHORT_SECRET} bytes: it can be guessed"
                    );
                }
                (Algorithm::HS256, DecodingKey::from_secret(&secret))
            }
            Some("EdDSA") => {
                let (Some(file), None, None) = (public_key_file, secret, secret_file) else {
                    return Err(wrong("EdDSA needs `public_key_file`, and no secret"));
                };
                let pem = std::fs::read(&file)
                    .map_err(|error| wrong(&format!("public_key_file {file}: {error}")))?;
                let key = DecodingKey::from_ed_pem(&pem).map_err(|_| {
                    wrong(&format!(
                        "public_key_file {file} is no Ed25519 public key in PEM (`openssl pkey -pubout`)"
                    ))
                })?;
                (Algorithm::EdDSA, key)
            }
            Some(other) => {
                return Err(wrong(&format!("algorithm \"{other}\" is not known: \"HS256\" or \"EdDSA\"")));
            }
            None => return Err(wrong("algorithm is missing: \"HS256\" or \"EdDSA\"")),
        };
        let mut validation = Validation::new(algorithm);
        validation.leeway = settings.leeway;
        validation.validate_nbf = true;
        validation.set_required_spec_claims(&["exp"]);
        if let Some(issuer) = settings.iss {
            validation.set_issuer(&[issuer]);
            validation.required_spec_claims.insert("iss".into());
        }
        match settings.aud {
            Some(audience) => {
                validation.set_audience(&[audience]);
                validation.required_spec_claims.insert("aud".into());
            }
            None => validation.validate_aud = false,
        }
        Ok(Self { key, validation })
    }

    /// Whose token it is. One that is not good in every way is refused.
    pub fn read(&self, token: &str) -> Result<Identity> {
        let read = decode::<Claims>(token, &self.key, &self.validation);
        let Claims { sub, username, name, exp, iat } =
            read.map_err(|error| Error::refused(reason(&error)))?.claims;
        let id = match sub {
            Some(Subject::Text(id)) if !id.is_empty() => id,
            Some(Subject::Number(id)) => id.to_string(),
            _ => return Err(Error::refused("the token has no `sub`; log in again")),
        };
        if id.len() > crate::LONGEST_ID {
            return Err(Error::refused("the token's `sub` is too long"));
        }
        let username = username.or(name).unwrap_or_else(|| id.clone());
        let expires = Some((exp.max(0.0) as u64).saturating_add(self.validation.leeway));
        // What is no number is no time. A second counts as a whole.
        let issued = iat.as_f64().map(|issued| issued as u64);
        Ok(Identity { user: User { id, username }, expires, issued })
    }
}

/// What is wrong with a token, without a word of its content.
fn reason(error: &jsonwebtoken::errors::Error) -> String {
    let what = match error.kind() {
        ErrorKind::ExpiredSignature => "has expired",
        ErrorKind::ImmatureSignature => "is not valid yet",
        ErrorKind::InvalidSignature => "has a wrong signature",
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => "is signed with another algorithm",
        ErrorKind::InvalidIssuer => "is from another issuer",
        ErrorKind::InvalidAudience => "is for another audience",
        ErrorKind::MissingRequiredClaim(claim) => return format!("the token has no `{claim}`; log in again"),
        _ => "cannot be read",
    };
    format!("the token {what}; log in again")
}

/// A secret that others can read is none.
fn read_secret(path: &Path) -> Result<Vec<u8>> {
    use std::os::unix::fs::MetadataExt;
    let wrong =
        |what: String| Error::invalid(format!("[session.token] secret_file {}: {what}", path.display()));
    let metadata = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?;
    if metadata.mode() & 0o077 != 0 {
        return Err(wrong(format!("others may read it; chmod 600 {}", path.display())));
    }
    let mut secret = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    // The line end that an editor leaves is no part of it.
    while secret.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
        secret.pop();
    }
    Ok(secret)
}

/// The settings as the file has them.
pub fn settings(value: Value) -> Result<Settings> {
    serde_json::from_value(value).map_err(|error| Error::invalid(format!("[session.token] {error}")))
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use jsonwebtoken::{EncodingKey, Header, encode};
    use serde_json::json;
    use zephserver_plugin::Code;

    use super::*;

    const SECRET: &str = "a secret of more than thirty-two bytes";
    // Made with `openssl genpkey -algorithm ed25519` for these tests only.
    const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIKe+j0WFLajkif8l1IOFzhbdy+o1HyiQXEvkNUC0mrH/\n-----END PRIVATE KEY-----\n";
    const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAAeB8W9FFmi8F/QJrzLWRy9pQxWV0Znesuqrt93+sEfw=\n-----END PUBLIC KEY-----\n";

    fn now() -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
    }

    fn tokens(more: Value) -> Result<Tokens> {
        let mut all = json!({"algorithm": "HS256", "secret": SECRET});
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Tokens::new(settings(all)?)
    }

    fn token(claims: Value) -> String {
        encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap()
    }

    fn refused(tokens: &Tokens, token: &str) -> String {
        let error = tokens.read(token).unwrap_err();
        assert_eq!(error.code, Code::Refused);
        error.text
    }

    #[test]
    fn a_good_token_names_its_user() {
        let tokens = tokens(json!({})).unwrap();
        let exp = now() + 60;
        let read = |claims: Value| tokens.read(&token(claims)).unwrap();
        let ann = read(json!({"sub": "7", "username": "Ann", "exp": exp, "aud": "x", "iss": "y"}));
        assert_eq!((ann.user.id.as_str(), ann.user.username.as_str(), ann.expires), ("7", "Ann", Some(exp)));
        assert_eq!(
            read(json!({"sub": 7, "name": "Bob", "exp": exp})).user,
            User { id: "7".into(), username: "Bob".into() }
        );
        assert_eq!(read(json!({"sub": "7", "exp": exp})).user.username, "7");
    }

    #[test]
    fn a_token_may_say_when_it_was_issued() {
        let tokens = tokens(json!({})).unwrap();
        let issued = |iat: Value| {
            tokens.read(&token(json!({"sub": "7", "exp": now() + 60, "iat": iat}))).unwrap().issued
        };
        assert_eq!((issued(json!(5)), issued(json!(5.9)), issued(json!(-5))), (Some(5), Some(5), Some(0)));
        // The token is as good as before.
        assert_eq!((issued(json!("5")), issued(Value::Null)), (None, None));
        let without = token(json!({"sub": "7", "exp": now() + 60}));
        assert_eq!(tokens.read(&without).unwrap().issued, None);
    }

    #[test]
    fn whatever_is_wrong_is_refused() {
        let tokens = tokens(json!({})).unwrap();
        let exp = now() + 60;
        assert!(refused(&tokens, &token(json!({"sub": "7", "exp": now() - 1}))).contains("expired"));
        assert!(refused(&tokens, &token(json!({"sub": "7"}))).contains("`exp`"));
        assert!(
            refused(&tokens, &token(json!({"sub": "7", "exp": exp, "nbf": exp}))).contains("not valid yet")
        );
        refused(&tokens, &token(json!({"sub": "", "exp": exp})));
        refused(&tokens, &token(json!({"exp": exp})));
        for wrong in ["", "x", "a.b.c", "{}"] {
            refused(&tokens, wrong);
        }
        let good = token(json!({"sub": "7", "exp": exp}));
        let (body, _) = good.rsplit_once('.').unwrap();
        assert!(refused(&tokens, &format!("{body}.AAAA")).contains("signature"));
        let other =
            encode(&Header::default(), &json!({"sub": "7", "exp": exp}), &EncodingKey::from_secret(b"other"));
        assert!(refused(&tokens, &other.unwrap()).contains("signature"));
        // "none", and an algorithm that the settings do not name.
        refused(&tokens, &format!("eyJhbGciOiJub25lIn0.{}.", body.split_once('.').unwrap().1));
        let hs512 = Header::new(Algorithm::HS512);
        let key = EncodingKey::from_secret(SECRET.as_bytes());
        refused(&tokens, &encode(&hs512, &json!({"sub": "7", "exp": exp}), &key).unwrap());
    }

    #[test]
    fn issuer_and_audience_count_where_they_are_set() {
        let tokens = tokens(json!({"iss": "me", "aud": "chat", "leeway": 30})).unwrap();
        let good = json!({"sub": "7", "exp": now() - 5, "iss": "me", "aud": "chat"});
        assert_eq!(
            tokens.read(&token(good.clone())).unwrap().expires,
            Some(good["exp"].as_u64().unwrap() + 30)
        );
        for (key, wrong) in
            [("iss", json!("you")), ("aud", json!("mail")), ("iss", Value::Null), ("aud", Value::Null)]
        {
            let mut claims = good.clone();
            claims[key] = wrong;
            refused(&tokens, &token(claims));
        }
    }

    #[test]
    fn eddsa_takes_its_own_tokens_only() {
        let file = std::env::temp_dir().join(format!("zephserver-key-{}", std::process::id()));
        std::fs::write(&file, PUBLIC).unwrap();
        let tokens = Tokens::new(settings(json!({"algorithm": "EdDSA", "public_key_file": file})).unwrap());
        std::fs::remove_file(&file).unwrap();
        let tokens = tokens.unwrap();
        let claims = json!({"sub": "7", "username": "Ann", "exp": now() + 60});
        let key = EncodingKey::from_ed_pem(PRIVATE.as_bytes()).unwrap();
        let signed = encode(&Header::new(Algorithm::EdDSA), &claims, &key).unwrap();
        assert_eq!(tokens.read(&signed).unwrap().user.username, "Ann");
        // The public key as a secret: an old trick.
        let key = EncodingKey::from_secret(PUBLIC.as_bytes());
        refused(&tokens, &encode(&Header::default(), &claims, &key).unwrap());
    }

    #[test]
    fn settings_that_do_not_fit_are_named() {
        for (wrong, word) in [
            (json!({"algorithm": "none"}), "\"none\" is not known"),
            (json!({"algorithm": null}), "algorithm is missing"),
            (json!({"secret_file": "/x"}), "either `secret` or `secret_file`"),
            (json!({"secret": ""}), "empty"),
            (json!({"public_key_file": "/x"}), "for EdDSA"),
            (json!({"algorithm": "EdDSA"}), "`public_key_file`, and no secret"),
            (json!({"colour": "red"}), "unknown field `colour`"),
        ] {
            let text = tokens(wrong).err().unwrap().text;
            assert!(text.contains(word) && !text.contains(SECRET), "{text}");
        }
    }

    #[test]
    fn a_secret_file_is_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let file = std::env::temp_dir().join(format!("zephserver-secret-{}", std::process::id()));
        std::fs::write(&file, format!("{SECRET}\n")).unwrap();
        let read = |mode| {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            read_secret(&file)
        };
        assert!(read(0o644).unwrap_err().text.contains("chmod 600"));
        assert_eq!(read(0o600).unwrap(), SECRET.as_bytes());
        std::fs::remove_file(&file).unwrap();
    }
}
