//! What a node must know to find its broker, checked before anything is started.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::{ConnectOptions, ServerAddr};
use percent_encoding::percent_decode_str;

use super::{ANSWER_DEADLINE, CONNECT_DEADLINE};
use crate::{LONGEST_NAME, Profile};

/// The longest name of a cluster.
const LONGEST_CLUSTER: usize = 64;

/// How to start [`Nats`](super::Nats).
#[derive(Clone)]
pub struct Options {
    /// The name of this node; no other of the cluster may have it.
    pub node: String,
    /// Where the broker is: `nats://host:port`, or `tls://`. Several are one broker's servers. Those that ask
    /// who one is get `user:password@` or `token@` of the first URL that has it, or the credentials.
    pub urls: Vec<String>,
    /// Nodes of different names do not see one another on the same broker: letters, digits, `-` and `_`.
    pub cluster: String,
    /// A file with credentials (JWT and seed), as `nsc` writes them. Read for each connection.
    pub credentials: Option<PathBuf>,
    /// A file with certificates of those who sign the broker's (PEM), where the system does not know them.
    pub authorities: Option<PathBuf>,
    /// How soon a silent node is down: `lan` after 5 s, `fast` after 2.5 s.
    pub profile: Profile,
}

impl Options {
    /// A node of this name at the broker of this URL; all else as usual.
    pub fn new(node: impl Into<String>, url: impl Into<String>) -> Self {
        Self {
            node: node.into(),
            urls: vec![url.into()],
            cluster: "zeph".into(),
            credentials: None,
            authorities: None,
            profile: Profile::Lan,
        }
    }

    /// What of it the engine needs, if it is right.
    pub(super) fn check(&self) -> Result<Broker, StartError> {
        let is_name = |name: &str| !name.is_empty() && name.len() <= LONGEST_NAME;
        if !is_name(&self.node) || self.node.contains(char::is_control) {
            return Err(StartError::Node(self.node.clone()));
        }
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        let length = self.cluster.len();
        if length == 0 || length > LONGEST_CLUSTER || !self.cluster.bytes().all(is_plain) {
            return Err(StartError::Cluster(self.cluster.clone()));
        }
        for path in [&self.credentials, &self.authorities].into_iter().flatten() {
            readable(path).map_err(|error| StartError::File { path: path.clone(), error })?;
        }
        let mut broker = Broker {
            address: String::new(),
            servers: Vec::new(),
            access: Access::Open,
            stream: format!("ZEPH_{}", self.cluster),
            events: format!("{}.events", self.cluster),
            alive: format!("{}.alive", self.cluster),
            credentials: self.credentials.clone(),
            authorities: self.authorities.clone(),
        };
        self.urls.iter().try_for_each(|url| broker.add(url))?;
        match broker.servers.is_empty() {
            true => Err(StartError::NoUrl),
            false => Ok(broker),
        }
    }
}

/// As its parts are, but for passwords.
impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let urls: Vec<_> = self.urls.iter().map(|url| without_secret(url)).collect();
        f.debug_struct("Options")
            .field("node", &self.node)
            .field("urls", &urls)
            .field("cluster", &self.cluster)
            .field("profile", &self.profile)
            .finish_non_exhaustive()
    }
}

impl Profile {
    pub(super) fn beat(self) -> Duration {
        match self {
            Self::Lan => Duration::from_secs(1),
            Self::Fast => Duration::from_millis(500),
        }
    }

    pub(super) fn silence(self) -> Duration {
        self.beat() * 5
    }
}

/// Why a node could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The name of the node is none.
    #[error(
        "`{0}` is no name for a node: give 1 to {LONGEST_NAME} bytes without control characters as `[cluster] node`"
    )]
    Node(String),
    /// The name of the cluster is none.
    #[error("`{0}` is no name for a cluster: give 1 to {LONGEST_CLUSTER} letters, digits, `-` or `_`")]
    Cluster(String),
    /// There is no broker to go to.
    #[error("there is no URL of a NATS broker: give one, as nats://localhost:4222")]
    NoUrl,
    /// The URL of the broker is none.
    #[error(
        "`{url}` is no URL of a NATS broker: {why}; give one as nats://localhost:4222 or tls://user:password@host"
    )]
    Url {
        /// Without what is secret in it.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// A file of the options cannot be read.
    #[error("cannot read {path}: {error}; the server's user must be able to", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The system gives no thread.
    #[error("cannot start a thread for the cluster: {0}; `ulimit -u` says how many there may be")]
    Thread(io::Error),
}

/// How one becomes known to the broker.
enum Access {
    Open,
    Token(String),
    Password(String, String),
}

/// Where the broker is and how it is spoken to.
pub(super) struct Broker {
    /// For people.
    pub address: String,
    pub stream: String,
    /// The subject of the stream.
    pub events: String,
    /// The subject of signs of life.
    pub alive: String,
    servers: Vec<ServerAddr>,
    access: Access,
    credentials: Option<PathBuf>,
    authorities: Option<PathBuf>,
}

impl Broker {
    fn add(&mut self, text: &str) -> Result<(), StartError> {
        let wrong = |why: String| StartError::Url { url: without_secret(text), why };
        let server: ServerAddr = text.parse().map_err(|_| wrong("it cannot be read".into()))?;
        if !["nats", "tls"].contains(&server.scheme()) {
            return Err(wrong(format!("`{}` is neither nats nor tls", server.scheme())));
        }
        if server.host().is_empty() {
            return Err(wrong("it names no host".into()));
        }
        if let (Access::Open, Some(user)) = (&self.access, server.username()) {
            let plain = |text| percent_decode_str(text).decode_utf8_lossy().into_owned();
            self.access = match server.password() {
                Some(password) => Access::Password(plain(user), plain(password)),
                None => Access::Token(plain(user)),
            };
        }
        // From here on nobody sees the secret, and so nobody can print it.
        let mut url = server.into_inner();
        let is_open = url.set_username("").and_then(|()| url.set_password(None)).is_ok();
        let server = is_open.then(|| ServerAddr::from_url(url).ok()).flatten();
        let server = server.ok_or_else(|| wrong("it cannot be read".into()))?;
        if !self.address.is_empty() {
            self.address.push(',');
        }
        self.address.push_str(&format!("{}://{}:{}", server.scheme(), server.host(), server.port()));
        self.servers.push(server);
        Ok(())
    }

    pub fn servers(&self) -> &[ServerAddr] {
        &self.servers
    }

    /// How the library is to connect.
    pub fn options(&self) -> io::Result<ConnectOptions> {
        let mut options =
            ConnectOptions::new().connection_timeout(CONNECT_DEADLINE).request_timeout(Some(ANSWER_DEADLINE));
        options = match &self.access {
            Access::Open => options,
            Access::Token(token) => options.token(token.clone()),
            Access::Password(user, password) => options.user_and_password(user.clone(), password.clone()),
        };
        if let Some(path) = &self.authorities {
            options = options.add_root_certificates(path.clone());
        }
        match &self.credentials {
            Some(path) => options.credentials(&readable(path)?),
            None => Ok(options),
        }
    }
}

fn readable(path: &Path) -> io::Result<String> {
    std::fs::read_to_string(path)
}

/// A text that is meant as URL, for people.
fn without_secret(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
    let open = rest.rsplit_once('@').map_or(rest, |(_, open)| open);
    match scheme {
        "" => open.into(),
        scheme => format!("{scheme}://{open}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(url: &str) -> Result<Broker, StartError> {
        Options::new("a", url).check()
    }

    #[test]
    fn a_broker_is_named_without_its_secrets() {
        let broker = check("nats://somebody:s%40crét@localhost").unwrap();
        assert_eq!(broker.address, "nats://localhost:4222");
        assert!(matches!(&broker.access, Access::Password(user, password)
            if user == "somebody" && password == "s@crét"));
        assert!(!format!("{:?}", broker.servers).contains("cr"), "{:?}", broker.servers);
        let broker = check("s3cr3t@10.0.0.1:99").unwrap();
        assert_eq!(broker.address, "nats://10.0.0.1:99");
        assert!(matches!(&broker.access, Access::Token(token) if token == "s3cr3t"));
        assert!(!format!("{:?}", broker.options().unwrap()).contains("s3cr3t"));
        assert!(!format!("{:?}", Options::new("a", "tls://u:s3cr3t@h")).contains("s3cr3t"));
    }

    #[test]
    fn several_urls_are_one_broker() {
        let urls = vec!["nats://one".into(), "tls://u:p@two:7".into(), "nats://x:y@three".into()];
        let broker = Options { urls, ..Options::new("a", "") }.check().unwrap();
        assert_eq!(broker.address, "nats://one:4222,tls://two:7,nats://three:4222");
        assert!(matches!(&broker.access, Access::Password(user, _) if user == "u"));
    }

    #[test]
    fn what_cannot_work_is_refused_with_what_to_do() {
        let text = |options: Options| options.check().err().unwrap().to_string();
        for url in ["", "http://u:s3cr3t@h", "nats://u:s3cr3t@h:port", "nats://s3cr3t@", "ws://s3cr3t@h"] {
            let text = text(Options::new("a", url));
            assert!(text.contains("nats://localhost:4222") && !text.contains("s3cr3t"), "{text}");
        }
        let options = Options::new("a", "nats://h");
        assert!(text(Options { urls: vec![], ..options.clone() }).contains("no URL"));
        for node in ["", "two\nlines", &"n".repeat(256)] {
            assert!(text(Options { node: node.into(), ..options.clone() }).contains("`[cluster] node`"));
        }
        for cluster in ["", "a.b", "a b", "a>", &"c".repeat(65)] {
            let text = text(Options { cluster: cluster.into(), ..options.clone() });
            assert!(text.contains("no name for a cluster"), "{text}");
        }
        let missing = Options { credentials: Some("/nowhere/x.creds".into()), ..options };
        assert!(text(missing).contains("/nowhere/x.creds"));
    }
}
