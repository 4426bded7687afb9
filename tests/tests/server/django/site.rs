//! A Django site, served from tests/django on this machine. Nothing is left of it after `drop`.

use std::fs::{self, File, Permissions, TryLockError};
use std::io::{Read, Seek, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;
use zephserver_testkit::deadline;

use super::postgres::{PASSWORD, Postgres};

/// SECRET_KEY of every site.
pub const SECRET: &str = "the key of a site that lives for one test";
const PROJECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/django");
const USERS: [&str; 4] = ["ann", "bob", "carol", "dave"];
/// It comes over a network, the first time.
const INSTALLING: Duration = Duration::from_secs(300);

/// A site that runs.
pub struct Site {
    child: Child,
    folder: TempDir,
    port: u16,
    engine: String,
    /// What `[session_django]` is told of the database.
    database: String,
}

/// What came of a request.
pub struct Answer {
    /// The session that the site gave; empty where it gave none.
    pub session: String,
    pub body: String,
}

impl Site {
    /// Makes tables and users, and serves. Without PostgreSQL it has a SQLite of its own.
    pub fn start(engine: &str, postgres: Option<&Postgres>) -> Self {
        let python = python();
        let folder = tempfile::Builder::new().prefix("zephserver-django-").tempdir().unwrap();
        let (for_django, database) = match postgres {
            Some(postgres) => {
                let password = secret_file(folder.path(), "password", PASSWORD);
                let lines =
                    format!("database = \"{}\"\ndatabase_password_file = \"{password}\"", postgres.url());
                (postgres.for_django(), lines)
            }
            None => {
                let file = folder.path().join("db.sqlite3");
                let for_django = json!({"ENGINE": "django.db.backends.sqlite3", "NAME": file});
                (for_django, format!("database = \"sqlite://{}\"", file.display()))
            }
        };
        let engine = format!("django.contrib.sessions.backends.{engine}");
        let given = json!({"secret_key": SECRET, "engine": engine, "database": for_django});
        let (stdout, stderr) = (folder.path().join("stdout"), folder.path().join("stderr"));
        let child = Command::new(python)
            .arg(format!("{PROJECT}/serve.py"))
            .args(USERS)
            .current_dir(folder.path())
            .env("SITE", given.to_string())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            // While this is open, it serves.
            .stdin(Stdio::piped())
            .stdout(File::create(&stdout).unwrap())
            .stderr(File::create(&stderr).unwrap())
            .spawn()
            .unwrap();
        let mut site = Self { child, folder, port: 0, engine, database };
        site.port = until("the site serves", 2 * deadline(), || {
            let told = fs::read_to_string(&stdout).unwrap();
            if let Some(status) = site.child.try_wait().unwrap() {
                panic!("the site ended with {status}\n{}", fs::read_to_string(&stderr).unwrap_or_default());
            }
            told.strip_prefix("port ")?.strip_suffix('\n')?.parse().ok()
        });
        site
    }

    /// The table of settings for it.
    pub fn settings(&self) -> String {
        let key = self.secret_file("secret_key", SECRET);
        let (engine, database) = (&self.engine, &self.database);
        format!("[session_django]\nsecret_key_file = \"{key}\"\nengine = \"{engine}\"\n{database}")
    }

    /// A file with a secret, for settings.
    pub fn secret_file(&self, name: &str, secret: &str) -> String {
        secret_file(self.folder.path(), name, secret)
    }

    /// Sessions are in the database.
    pub fn keeps_rows(&self) -> bool {
        self.engine.ends_with(".db")
    }

    /// Logs in; answers the session.
    pub fn login(&self, name: &str) -> String {
        let answer = self.ask("login", "", &format!("username={name}&password=password-of-{name}"));
        assert_eq!(answer.body, name);
        answer.session
    }

    /// Who it is for the site; empty: somebody anonymous.
    pub fn who(&self, session: &str) -> String {
        self.ask("who", session, "").body
    }

    /// Asks for a view with a session; empty: with none.
    pub fn ask(&self, view: &str, session: &str, form: &str) -> Answer {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(deadline())).unwrap();
        let request = format!(
            "POST /{view} HTTP/1.0\r\nHost: 127.0.0.1\r\nCookie: sessionid={session}\r\n\
             Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{form}",
            form.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        assert!(head.contains(" 200 "), "{view}: {answer}");
        let mut cookies = head.lines().filter_map(|line| line.strip_prefix("Set-Cookie:"));
        let given = cookies.find_map(|cookie| cookie.trim_start().strip_prefix("sessionid="));
        let session = given.and_then(|given| given.split(';').next()).unwrap_or_default();
        Answer { session: session.into(), body: body.into() }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let errors = fs::read_to_string(self.folder.path().join("stderr")).unwrap_or_default();
            eprintln!("the site said: {errors}");
        }
    }
}

fn secret_file(folder: &Path, name: &str, secret: &str) -> String {
    let file = folder.join(name);
    fs::write(&file, format!("{secret}\n")).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    file.display().to_string()
}

/// A Python with what the site requires. It is made once, and again when the requirements change.
fn python() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let folder = target.join("django-venv");
    let lock = File::create(target.join("django-venv.lock")).unwrap();
    until("another test has installed Django", 2 * INSTALLING, || match lock.try_lock() {
        Ok(()) => Some(()),
        Err(TryLockError::WouldBlock) => None,
        Err(TryLockError::Error(error)) => panic!("django-venv.lock: {error}"),
    });
    let requirements = format!("{PROJECT}/requirements.txt");
    let required = fs::read(&requirements).unwrap();
    let (python, installed) = (folder.join("bin/python"), folder.join("installed.txt"));
    if python.exists() && fs::read(&installed).is_ok_and(|installed| installed == required) {
        return python;
    }
    if folder.exists() {
        fs::remove_dir_all(&folder).unwrap();
    }
    run(Command::new("python3").args(["-m", "venv"]).arg(&folder), INSTALLING).unwrap_or_else(|error| {
        panic!(
            "Python with its module venv is missing; install it: apt-get install python3-venv \
             (./scripts/test does, as root)\n{error}"
        )
    });
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"];
    run(Command::new(&python).args(install).arg(&requirements), INSTALLING)
        .unwrap_or_else(|error| panic!("pip could not install {requirements}: {error}"));
    fs::write(&installed, required).unwrap();
    python
}

/// Waits until `look` finds something, or fails the test.
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited {} s until {what}", limit.as_secs());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs a program to its end, within a time; an error has all that it printed.
pub fn run(command: &mut Command, limit: Duration) -> Result<(), String> {
    let mut printed = tempfile::tempfile().unwrap();
    let (stdout, stderr) = (printed.try_clone().unwrap(), printed.try_clone().unwrap());
    let child = command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn();
    let mut child = child.map_err(|error| format!("{command:?}: {error}"))?;
    let end = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status.to_string();
        }
        if Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            break format!("it took more than {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    if child.wait().unwrap().success() {
        return Ok(());
    }
    let mut text = String::new();
    printed.rewind().unwrap();
    printed.read_to_string(&mut text).unwrap();
    Err(format!("{command:?}: {status}\n{text}"))
}
