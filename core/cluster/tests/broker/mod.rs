//! A NATS broker of one's own: a free port of loopback, a store of its own, ended by its process id.
#![allow(dead_code, reason = "each test binary uses its part of it")]

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::ear::wait_until;

pub struct Broker {
    folder: TempDir,
    port: u16,
    extra: Vec<String>,
    child: Option<Child>,
}

impl Broker {
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// With further arguments.
    pub fn with(extra: &[&str]) -> Self {
        let mut broker = Self::away();
        broker.set_arguments(extra);
        broker.run();
        broker
    }

    /// Three servers that are one broker, each with all that is stored.
    pub fn three() -> [Self; 3] {
        let mut brokers = [Self::away(), Self::away(), Self::away()];
        let routes: Vec<_> = (0..3).map(|_| format!("nats://127.0.0.1:{}", free_port())).collect();
        for (number, broker) in brokers.iter_mut().enumerate() {
            let name = format!("server-{number}");
            let others =
                ["-cluster", &routes[number], "-cluster_name", "three", "-routes", &routes.join(",")];
            broker.set_arguments(&[&["-n", &name][..], &others].concat());
            broker.run();
        }
        brokers
    }

    /// Its port, and nobody there yet.
    pub fn away() -> Self {
        Self { folder: TempDir::new().unwrap(), port: free_port(), extra: Vec::new(), child: None }
    }

    /// Further arguments, from the next start on.
    pub fn set_arguments(&mut self, extra: &[&str]) {
        self.extra = extra.iter().map(|text| (*text).to_owned()).collect();
    }

    /// Starts it, on the port and the store that it had.
    pub fn run(&mut self) {
        let store = self.folder.path().join("store");
        self.run_with(&["-js", "-sd", store.to_str().unwrap()]);
    }

    /// Starts it as it is by default.
    pub fn run_without_jetstream(&mut self) {
        self.run_with(&[]);
    }

    fn run_with(&mut self, arguments: &[&str]) {
        assert!(self.child.is_none(), "it runs");
        let log = std::fs::File::options().create(true).append(true).open(self.log()).unwrap();
        let mut command = Command::new(program());
        command.args(["-a", "127.0.0.1", "-p", &self.port.to_string()]).args(arguments).args(&self.extra);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.child = Some(child);
        wait_until("the broker is there", || {
            assert!(self.child.as_mut().unwrap().try_wait().unwrap().is_none(), "{}", self.said());
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok()
        });
    }

    /// SIGKILL: it has no time for anything.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Loses everything that it stored. Only while it does not run.
    pub fn forget(&self) {
        assert!(self.child.is_none(), "it runs");
        std::fs::remove_dir_all(self.folder.path().join("store")).unwrap();
    }

    /// Keeps what is stored now. Only while it does not run.
    pub fn keep(&self) {
        assert!(self.child.is_none(), "it runs");
        copy(&self.folder.path().join("store"), &self.folder.path().join("kept"));
    }

    /// Has stored again what was kept, and nothing else. Only while it does not run.
    pub fn restore(&self) {
        self.forget();
        copy(&self.folder.path().join("kept"), &self.folder.path().join("store"));
    }

    /// Runs on its store where no node looks for it.
    pub fn elsewhere(&mut self, act: impl FnOnce(&Self)) {
        let port = std::mem::replace(&mut self.port, free_port());
        self.run();
        act(self);
        self.kill();
        self.port = port;
    }

    /// Which of several servers it is.
    pub fn name(&self) -> Option<&str> {
        let at = self.extra.iter().position(|text| text == "-n")?;
        self.extra.get(at + 1).map(String::as_str)
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => assert!(std::fs::copy(entry.path(), to).is_ok(), "{}", entry.path().display()),
        }
    }
}

fn program() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    let found = folders.map(|folder| folder.join("nats-server")).find(|program| program.is_file());
    found.expect("nats-server is missing; install it: apt-get install nats-server")
}
