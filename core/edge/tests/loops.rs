//! A loop with real sockets, and a protocol of one byte for each wish.
#![allow(missing_docs)]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use zeph_edge::{Cid, Doors, Framing, Limits, Link, Links, Peers, Protocol, Waking};

struct Wishes {
    peers: Arc<Peers>,
    cids: Vec<[u8; 8]>,
    opened: Sender<()>,
}

impl Protocol for Wishes {
    type Peer = ();

    fn opened(&mut self, cid: Cid) -> ((), Duration) {
        self.cids.push(cid.to_le_bytes());
        self.opened.send(()).unwrap();
        ((), Duration::from_secs(60))
    }

    fn bytes(&mut self, link: &mut Link<'_, ()>, bytes: &mut [u8]) -> usize {
        for byte in &*bytes {
            match byte {
                b'a' => drop(self.peers.send(&self.cids, b"all\n")),
                b'f' => drop(self.peers.send(&[link.cid.to_le_bytes()], b"few\n")),
                b'o' => drop(link.outbox.send_bytes(b"own\n")),
                _ => panic!("told to"),
            }
        }
        bytes.len()
    }

    fn due(&mut self, _: &mut Link<'_, ()>, _: Duration) {}
    fn woken(&mut self, _: &mut Links<'_, ()>) {}
    fn ending(&mut self, link: &mut Link<'_, ()>) {
        link.outbox.send_bytes(b"end\n");
    }
    fn panicked(&mut self, link: &mut Link<'_, ()>) {
        link.outbox.send_bytes(b"sorry\n");
    }
    fn detached(&mut self, _: TcpStream, _: Vec<u8>, (): ()) {}
    fn closed(&mut self, cid: Cid, (): ()) {
        self.cids.retain(|known| *known != cid.to_le_bytes());
    }
}

struct Running {
    address: std::net::SocketAddr,
    peers: Arc<Peers>,
    opened: Receiver<()>,
    stop: Arc<AtomicBool>,
    waking: Waking,
    thread: Option<std::thread::JoinHandle<()>>,
}

fn run() -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (peers, stop) = (Arc::<Peers>::default(), Arc::new(AtomicBool::new(false)));
    let second = Duration::from_secs(1);
    let limits = Limits { connections: 100, connections_per_address: 100, backlog: 1000, linger: second };
    let length = |bytes: &[u8]| bytes.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
    let framing = Framing { length, too_slow: b"slow\n".into(), refused: Vec::new() };
    let doors = Doors::open(1).unwrap();
    let waking = doors.waking().remove(0);
    let (sender, opened) = channel();
    let protocol = |_| Wishes { peers: peers.clone(), cids: Vec::new(), opened: sender.clone() };
    let mut one = doors.loops(listener, &peers, &limits, framing, protocol).unwrap().remove(0);
    let ending = stop.clone();
    let thread = std::thread::spawn(move || one.run(|| ending.load(Ordering::Relaxed)).unwrap());
    Running { address, peers, opened, stop, waking, thread: Some(thread) }
}

impl Running {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        self.opened.recv_timeout(Duration::from_secs(30)).unwrap();
        stream
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.waking.wake();
        self.thread.take().unwrap().join().unwrap();
    }
}

fn read(stream: &mut TcpStream, length: usize) -> String {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn what_one_turn_sends_arrives_in_its_order() {
    let mut running = run();
    let mut streams: Vec<TcpStream> = (0..20).map(|_| running.connect()).collect();
    streams[0].write_all(b"oaafao").unwrap();
    assert_eq!(read(&mut streams[0], 24), "own\nall\nall\nfew\nall\nown\n");
    for stream in &mut streams[1..] {
        assert_eq!(read(stream, 12), "all\nall\nall\n");
    }
    running.end();
    assert_eq!(read(&mut streams[3], 4), "end\n");
}

#[test]
fn a_panic_in_a_turn_ends_its_own_connection_and_no_other() {
    let mut running = run();
    let (mut one, mut other) = (running.connect(), running.connect());
    one.write_all(b"ox").unwrap();
    let mut rest = String::new();
    one.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "own\nsorry\n");
    other.write_all(b"o").unwrap();
    assert_eq!(read(&mut other, 4), "own\n");
    assert_eq!(running.peers.figures().panicked, 1);
    running.end();
}

#[test]
fn a_loop_that_ends_leaves_no_connection() {
    let mut running = run();
    let streams: Vec<TcpStream> = (0..10).map(|_| running.connect()).collect();
    streams[0].shutdown(Shutdown::Write).unwrap();
    running.end();
    let figures = running.peers.figures();
    assert_eq!((figures.connections, figures.accepted), (0, 10));
}
