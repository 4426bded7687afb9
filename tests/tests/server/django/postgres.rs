//! A PostgreSQL for one test, in a folder of its own. Nothing is left of it after `drop`.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use zephserver_testkit::deadline;

use super::site::{run, until};

/// Of the user `zeph`.
pub const PASSWORD: &str = "p@ss/word of zeph";

/// A cluster of PostgreSQL with one database, `postgres`.
pub struct Postgres {
    folder: TempDir,
    programs: PathBuf,
    /// It does not run as root: then it is somebody else.
    owner: Option<(u32, u32)>,
    port: u16,
    child: Option<Child>,
}

impl Postgres {
    /// Makes one and starts it.
    pub fn create() -> Self {
        let programs = programs();
        let folder = tempfile::Builder::new().prefix("zephserver-postgres-").tempdir().unwrap();
        let password = folder.path().join("password");
        fs::write(&password, PASSWORD).unwrap();
        let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
        let owner = is_root.then(|| ids("postgres"));
        if let Some((uid, gid)) = owner {
            chown(folder.path(), Some(uid), Some(gid)).unwrap();
            chown(&password, Some(uid), Some(gid)).unwrap();
        }
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let mut postgres = Self { folder, programs, owner, port, child: None };
        let mut initdb = postgres.command("initdb");
        initdb.args([
            "--username=zeph",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
        ]);
        initdb.arg("--pwfile").arg(&password);
        run(&mut initdb, 2 * deadline()).unwrap_or_else(|error| panic!("{error}"));
        postgres.start();
        postgres
    }

    /// Starts it again after a stop, on the same port.
    pub fn start(&mut self) {
        let file = self.folder.path().join("log");
        let log = File::create(&file).unwrap();
        let child = self
            .command("postgres")
            .args([
                "-c",
                "listen_addresses=127.0.0.1",
                "-c",
                "fsync=off",
                "-c",
                &format!("port={}", self.port),
            ])
            .arg("-k")
            .arg(self.folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        let child = self.child.insert(child.unwrap());
        until("PostgreSQL is ready", 2 * deadline(), || {
            let said = fs::read_to_string(&file).unwrap_or_default();
            if let Some(status) = child.try_wait().unwrap() {
                panic!("PostgreSQL ended with {status}\n{said}");
            }
            said.contains("ready to accept connections").then_some(())
        });
    }

    /// Ends it at once, as a crash would.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // It ends its helpers, which SIGKILL would leave behind for a while.
        let _ = Command::new("kill").args(["-QUIT", &child.id().to_string()]).status();
        let end = Instant::now() + deadline();
        while matches!(child.try_wait(), Ok(None)) {
            if Instant::now() > end {
                eprintln!("PostgreSQL did not stop");
                let _ = child.kill();
                let _ = child.wait();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Without the password.
    pub fn url(&self) -> String {
        format!("postgres://zeph@127.0.0.1:{}/postgres", self.port)
    }

    /// An entry of Django's DATABASES.
    pub fn for_django(&self) -> Value {
        json!({
            "ENGINE": "django.db.backends.postgresql",
            "HOST": "127.0.0.1",
            "PORT": self.port,
            "USER": "zeph",
            "PASSWORD": PASSWORD,
            "NAME": "postgres",
        })
    }

    /// One of its programs, for this cluster.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.arg("-D").arg(self.folder.path().join("data")).current_dir(self.folder.path());
        if let Some((uid, gid)) = self.owner {
            command.uid(uid).gid(gid);
        }
        command.env("LC_ALL", "C");
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Where its programs are: Debian keeps them out of the PATH.
fn programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = versions.map(|version| version.path().join("bin")).chain(std::env::split_paths(&path));
    folders.find(|folder| folder.join("initdb").is_file()).expect(
        "PostgreSQL is missing; install it: apt-get install postgresql (./scripts/test does, as root)",
    )
}

/// User and group of an account.
fn ids(name: &str) -> (u32, u32) {
    let accounts = fs::read_to_string("/etc/passwd").unwrap();
    let account = accounts.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let account = account.expect("PostgreSQL does not run as root, and there is no user `postgres`");
    let mut numbers = account.split(':').skip(1).map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}
