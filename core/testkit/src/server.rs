//! A server as a user runs it, in a folder of its own.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use zeph_contract::{Code, Error};
use zephserver::client;

use crate::Build;

/// How long a test waits for something that will come.
pub fn deadline() -> Duration {
    Duration::from_secs(30)
}

/// A file that cargo built.
pub fn built(name: &str) -> PathBuf {
    let folder = std::env::var_os("ZEPHSERVER_BIN").map(PathBuf::from).unwrap_or_else(|| {
        let test = std::env::current_exe().expect("a test has a path");
        let folder = test.parent().expect("a test is in a folder");
        // Tests are in target/release/deps, examples in target/release/examples: what was built is above.
        let is_below = folder.ends_with("deps") || folder.ends_with("examples");
        if is_below { folder.parent().expect("it is in a folder").into() } else { folder.into() }
    });
    let file = folder.join(name);
    assert!(file.exists(), "{} is not built; run: cargo build --release --workspace", file.display());
    file
}

/// A server that runs, or is about to.
pub struct TestServer {
    folder: Option<TempDir>,
    services: Vec<String>,
    settings: String,
    /// The command that starts it.
    within: Vec<String>,
    child: Option<Child>,
}

/// A command that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; None: ended by a signal.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it printed of errors.
    pub stderr: String,
}

/// A command to be run to its end.
pub struct Command(std::process::Command);

impl Command {
    /// One of the project's binaries.
    pub fn new(binary: &str) -> Self {
        let mut command = std::process::Command::new(built(binary));
        command.stdin(Stdio::null());
        Self(command)
    }

    /// Adds words.
    pub fn args<S: AsRef<std::ffi::OsStr>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.0.args(words);
        self
    }

    /// Runs it to its end.
    pub fn run(mut self) -> Finished {
        let output = self.0.output().expect("a built binary can be run");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Finished { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl TestServer {
    /// A server with these services; their libraries are copied to its plugin folder.
    pub fn with(services: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("zephserver-test-").tempdir();
        let folder = folder.expect("a temporary folder can be made");
        let server = Self {
            folder: Some(folder),
            services: services.iter().map(|service| service.to_string()).collect(),
            settings: String::new(),
            within: Vec::new(),
            child: None,
        };
        fs::create_dir(server.path("plugins")).expect("the test's own folder can be written");
        for service in services {
            let library = service.split('/').next().unwrap_or(service);
            server.install(library, &Build::of(library));
        }
        server
    }

    /// Adds lines to the settings file; the first may be top-level keys.
    pub fn settings(mut self, lines: &str) -> Self {
        self.settings.push_str(lines);
        self.settings.push('\n');
        self
    }

    /// Has it started by a command that becomes the program behind its words: `ip netns exec NAME`.
    pub fn within(mut self, words: &[&str]) -> Self {
        self.within = words.iter().map(|word| word.to_string()).collect();
        self
    }

    /// A path in the server's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.as_ref().expect("kept until drop").path().join(name)
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.path("interface.sock")
    }

    /// The file of a library in the plugin folder.
    pub fn library(&self, name: &str) -> PathBuf {
        self.path("plugins").join(format!("lib{name}.so"))
    }

    /// Drops a library in.
    pub fn install(&self, library: &str, build: &Build) {
        build.put(&self.library(library));
    }

    /// Writes the settings file and answers its path.
    pub fn write_settings(&self) -> PathBuf {
        let services = serde_json::to_string(&self.services).expect("texts are JSON");
        let own = format!(
            "LOCK_FILE = \"server.lock\"\nCONFIGURATION_NETWORK_INTERFACE_SERVER = \"interface.sock\"\nPLUGIN_PATH = \
             [\"plugins\"]\nLOG_LEVEL = \"INFO\"\nSERVICE_LIST = {services}\n{}",
            self.settings
        );
        let file = self.path("settings.toml");
        fs::write(&file, own).expect("the test's own folder can be written");
        file
    }

    /// Changes the settings file while the server runs, as editors do: a new file takes the old one's place.
    pub fn edit_settings(&self, edit: impl FnOnce(String) -> String) {
        let (file, beside) = (self.path("settings.toml"), self.path("settings.toml.new"));
        let text = fs::read_to_string(&file).expect("the settings are written at the start");
        fs::write(&beside, edit(text)).expect("the test's own folder can be written");
        fs::rename(&beside, &file).expect("the test's own folder can be written");
    }

    /// Starts it, without waiting for anything.
    pub fn launch(mut self) -> Self {
        self.launch_again();
        self
    }

    /// Starts it once more after it ended.
    pub fn launch_again(&mut self) {
        let file = self.write_settings();
        let out = |name: &str| File::create(self.path(name)).expect("the test's own folder can be written");
        let start = built("zephserver-start");
        let words = self.within.iter().map(OsStr::new).chain([start.as_os_str()]).collect::<Vec<_>>();
        let child = std::process::Command::new(words[0])
            .args(&words[1..])
            .arg("--settings")
            .arg(file)
            .stdin(Stdio::null())
            .stdout(out("stdout"))
            .stderr(out("stderr"))
            .spawn();
        self.child = Some(child.expect("a built binary can be run"));
    }

    /// Starts it and waits until it is ready.
    pub fn start(self) -> Self {
        let mut server = self.launch();
        server.wait_ready();
        server
    }

    /// Waits until it says that it is ready.
    pub fn wait_ready(&mut self) {
        self.wait("the server is ready", |server| {
            if let Some(child) = &mut server.child
                && let Ok(Some(status)) = child.try_wait()
            {
                panic!("the server ended with {status}: {}", server.stderr());
            }
            // The last line of what it prints then: the addresses stand above it.
            server.stdout().contains("stop it:").then_some(())
        });
    }

    /// What it printed so far.
    pub fn stdout(&self) -> String {
        fs::read_to_string(self.path("stdout")).unwrap_or_default()
    }

    /// What it printed of errors so far.
    pub fn stderr(&self) -> String {
        fs::read_to_string(self.path("stderr")).unwrap_or_default()
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("logging.log")).unwrap_or_default()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it was launched").id()
    }

    /// Waits until `look` finds something, or fails the test.
    pub fn wait<T>(&mut self, what: &str, mut look: impl FnMut(&mut Self) -> Option<T>) -> T {
        let end = Instant::now() + deadline();
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            assert!(
                Instant::now() < end,
                "waited {} s until {what}\n--- stdout\n{}\n--- stderr\n{}\n--- log\n{}",
                deadline().as_secs(),
                self.stdout(),
                self.stderr(),
                self.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for a line in the log.
    pub fn wait_log(&mut self, part: &str) {
        self.wait(&format!("the log says {part:?}"), |server| server.log().contains(part).then_some(()));
    }

    /// Sends a command to the control socket.
    pub fn ask(&self, line: &str) -> Result<Value, Error> {
        let answer = client::ask(&self.socket(), line)
            .unwrap_or_else(|error| panic!("{line}: {error}\n{}\n{}", self.stderr(), self.log()));
        match answer.get("error") {
            Some(error) => {
                let code = serde_json::from_value::<Code>(error["code"].clone()).unwrap_or(Code::Internal);
                Err(Error::new(code, error["text"].as_str().unwrap_or_default()))
            }
            None => Ok(answer),
        }
    }

    /// Calls a method with JSON.
    pub fn call(&self, service: &str, method: &str, payload: &str) -> Result<Value, Error> {
        self.ask(&format!("call {service} {method} {payload}"))
    }

    /// What `status` says of a service.
    pub fn service(&self, name: &str) -> Value {
        let services =
            self.ask(&format!("services {name}")).unwrap_or_else(|error| panic!("{name}: {error}"));
        services[0].clone()
    }

    /// Waits until `status` says something of a service.
    pub fn wait_service(&mut self, name: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        self.wait(&format!("{name}: {what}"), |server| {
            let services = server.ask(&format!("services {name}")).ok()?;
            Some(services[0].clone()).filter(|service| is_so(service))
        })
    }

    /// Opens a connection to the control socket.
    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).expect("the control socket is open");
        stream.set_read_timeout(Some(deadline())).expect("a socket takes a timeout");
        stream
    }

    /// Sends raw bytes to the control socket and answers the first line that comes back.
    pub fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // The other side may have had enough before the last byte.
        let _ = stream.write_all(bytes);
        let mut line = String::new();
        let _ = BufReader::new(stream).read_line(&mut line);
        line
    }

    /// Sends it a signal by its name: `TERM`.
    pub fn signal(&self, name: &str) {
        let sent =
            std::process::Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status();
        assert!(sent.is_ok_and(|status| status.success()), "kill -{name}");
    }

    /// Runs `zephserver` with its settings.
    pub fn command(&self, words: &[&str]) -> Finished {
        let settings = self.path("settings.toml");
        Command::new("zephserver").args(["--settings".as_ref(), settings.as_os_str()]).args(words).run()
    }

    /// Runs `zephserver-stop`.
    pub fn stop(&self) -> Finished {
        Command::new("zephserver-stop").args([self.socket()]).run()
    }

    /// Waits until its process has ended; answers the exit code.
    pub fn wait_ended(&mut self) -> Option<i32> {
        let mut child = self.child.take().expect("it was launched");
        let end = Instant::now() + deadline();
        loop {
            if let Some(status) = child.try_wait().expect("a child can be waited for") {
                return status.code();
            }
            if Instant::now() > end {
                let _ = child.kill();
                panic!("the server did not end\n{}\n{}", self.stderr(), self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Files and folders in its folder that are not the test's own.
    pub fn left_behind(&self) -> Vec<String> {
        let own = ["plugins", "settings.toml", "stdout", "stderr"];
        let entries = fs::read_dir(self.path("")).expect("the test's own folder can be read");
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| !own.contains(&name.as_str())).collect()
    }

    /// The port that a service listens on, by what the server printed.
    pub fn port(&self, service: &str) -> u16 {
        let stdout = self.stdout();
        let line = stdout.lines().find(|line| line.contains(service) && line.contains("listens on"));
        let port = line.and_then(|line| line.rsplit(':').next()).and_then(|port| port.trim().parse().ok());
        port.unwrap_or_else(|| panic!("{service} does not listen: {stdout}"))
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking()
            && let Some(folder) = self.folder.take()
        {
            eprintln!("the server's folder is kept: {}", folder.keep().display());
        }
    }
}
