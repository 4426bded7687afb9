//! Chromium without a screen, driven by its DevTools protocol: windows, scripts, keys, pictures.

use std::cell::RefCell;
use std::fs::{self, File};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;
use tungstenite::stream::MaybeTlsStream;
use tungstenite::{Message, WebSocket};
use zephserver_testkit::deadline;

/// One browser at a time: each is a dozen processes.
static TURN: Mutex<()> = Mutex::new(());

/// As root there is no sandbox; windows that nobody looks at run as fast as others; nothing but this
/// machine is asked for anything.
const OPTIONS: [&str; 17] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-breakpad",
    "--disable-background-networking",
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--disable-component-update",
    "--disable-quic",
    "--disable-sync",
    "--no-default-browser-check",
    "--no-first-run",
    "--no-proxy-server",
    "--window-size=1280,800",
    "--remote-debugging-port=0",
];

/// A browser that runs. Nothing is left of it after `drop`.
pub struct Chromium {
    link: RefCell<Link>,
    _process: Process,
    _turn: MutexGuard<'static, ()>,
}

/// One of its windows.
pub struct Window<'a> {
    browser: &'a Chromium,
    session: String,
}

struct Process {
    child: Child,
    folder: TempDir,
}

struct Link {
    socket: WebSocket<MaybeTlsStream<TcpStream>>,
    last_id: u64,
}

impl Chromium {
    /// Starts it, and waits until it listens.
    pub fn start() -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut process = Process::start();
        let (socket, _) = tungstenite::connect(process.address()).unwrap();
        if let MaybeTlsStream::Plain(stream) = socket.get_ref() {
            stream.set_read_timeout(Some(deadline())).unwrap();
        }
        Self { link: RefCell::new(Link { socket, last_id: 0 }), _process: process, _turn: turn }
    }

    /// Opens a window, and waits until its page is loaded.
    pub fn open(&self, url: &str) -> Window<'_> {
        let call = |method: &str, params: Value| self.link.borrow_mut().call(None, method, &params).unwrap();
        let target = call("Target.createTarget", json!({"url": url, "newWindow": true}));
        let attached =
            call("Target.attachToTarget", json!({"targetId": target["targetId"], "flatten": true}));
        let session = attached["sessionId"].as_str().unwrap().to_string();
        let window = Window { browser: self, session };
        window
            .wait(&format!("location.href.startsWith({}) && document.readyState === 'complete'", json!(url)));
        window
    }
}

impl Window<'_> {
    fn call(&self, method: &str, params: &Value) -> Result<Value, String> {
        self.browser.link.borrow_mut().call(Some(&self.session), method, params)
    }

    fn try_evaluate(&self, script: &str) -> Result<Value, String> {
        let params = json!({"expression": script, "awaitPromise": true, "returnByValue": true});
        let mut answer = self.call("Runtime.evaluate", &params)?;
        if let Some(details) = answer.get("exceptionDetails") {
            let text = details["exception"]["description"].as_str().or(details["text"].as_str());
            return Err(text.unwrap_or("an exception").to_string());
        }
        Ok(answer["result"]["value"].take())
    }

    /// The value of a script, of its promise if it is one; an exception fails the test.
    pub fn evaluate(&self, script: &str) -> Value {
        self.try_evaluate(script).unwrap_or_else(|error| panic!("{error}\n--- in\n{script}"))
    }

    /// Waits until a script's value is true, or fails the test.
    pub fn wait(&self, condition: &str) {
        let end = Instant::now() + deadline();
        loop {
            // While the page loads, names are missing and contexts go away.
            let seen = self.try_evaluate(condition);
            if seen == Ok(Value::Bool(true)) {
                return;
            }
            if Instant::now() > end {
                let shown = self.try_evaluate("`${location}\n${document.body?.innerText}`");
                panic!(
                    "waited {} s until {condition}\nseen: {seen:?}\nshown: {shown:?}",
                    deadline().as_secs()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Types a line into a field, as a user does, and ends it with Enter.
    pub fn type_line(&self, field: &str, line: &str) {
        self.evaluate(&format!("document.querySelector({}).focus()", json!(field)));
        self.call("Input.insertText", &json!({"text": line})).unwrap();
        for kind in ["keyDown", "keyUp"] {
            // With its character: only that submits a form.
            let (key, text, number) = ("Enter", "\r", 13);
            let key =
                json!({"type": kind, "key": key, "code": key, "text": text, "windowsVirtualKeyCode": number});
            self.call("Input.dispatchKeyEvent", &key).unwrap();
        }
    }

    /// Writes what is seen to a file.
    pub fn screenshot(&self, file: &Path) {
        let answer = self.call("Page.captureScreenshot", &json!({"format": "png"})).unwrap();
        fs::write(file, STANDARD.decode(answer["data"].as_str().unwrap()).unwrap()).unwrap();
    }
}

impl Process {
    fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("zephserver-chromium-").tempdir().unwrap();
        let child = Command::new(program())
            .args(OPTIONS)
            .arg(format!("--user-data-dir={}", folder.path().join("profile").display()))
            // What it keeps beside its profile goes the same way.
            .envs(["HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"].map(|name| (name, folder.path())))
            .env_remove("DBUS_SESSION_BUS_ADDRESS")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(folder.path().join("stderr")).unwrap())
            .process_group(0)
            .spawn()
            .unwrap();
        Self { child, folder }
    }

    /// Where it listens, by the file that it writes: a port and a path, a line each.
    fn address(&mut self) -> String {
        let end = Instant::now() + deadline();
        loop {
            let told = fs::read_to_string(self.folder.path().join("profile/DevToolsActivePort"));
            if let Some((port, path)) = told.as_deref().unwrap_or_default().split_once('\n')
                && path.starts_with("/devtools/browser/")
            {
                return format!("ws://127.0.0.1:{port}{}", path.trim());
            }
            let ended = self.child.try_wait().unwrap();
            if ended.is_some() || Instant::now() > end {
                let errors = fs::read_to_string(self.folder.path().join("stderr")).unwrap_or_default();
                panic!("chromium does not listen (ended: {ended:?})\n{errors}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Its helpers are in its process group.
        let group = format!("-{}", self.child.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
        let _ = self.child.wait();
        // A helper may have been writing to the folder until just now.
        let end = Instant::now() + Duration::from_secs(5);
        while fs::remove_dir_all(self.folder.path()).is_err() && self.folder.path().exists() {
            if Instant::now() > end {
                eprintln!("{} could not be removed", self.folder.path().display());
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Link {
    fn call(&mut self, session: Option<&str>, method: &str, params: &Value) -> Result<Value, String> {
        self.last_id += 1;
        let mut order = json!({"id": self.last_id, "method": method, "params": params});
        if let Some(session) = session {
            order["sessionId"] = session.into();
        }
        self.socket.send(Message::text(order.to_string())).unwrap();
        loop {
            let message = self.socket.read().unwrap_or_else(|error| panic!("{method} {params}: {error}"));
            let Message::Text(text) = message else { continue };
            let mut answer: Value = serde_json::from_str(&text).unwrap();
            // Events, which have no id, come in between.
            if answer["id"] == self.last_id {
                if let Some(error) = answer["error"]["message"].as_str() {
                    return Err(error.to_string());
                }
                return Ok(answer["result"].take());
            }
        }
    }
}

fn program() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).map(|folder| folder.join("chromium")).find(|file| file.is_file());
    found.expect("chromium is missing; install it: apt-get install chromium (./scripts/test does, as root)")
}
