//! A loop with real sockets, and a protocol of one byte for each wish.
#![allow(missing_docs)]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use zeph_edge::{Carried, Cid, Doors, Framing, Limits, Link, Loop, Peers, Protocol, To, Waking};

struct Wishes {
    peers: Arc<Peers>,
    cids: Vec<[u8; 8]>,
    opened: Sender<()>,
}

impl Protocol for Wishes {
    /// How often it was heard.
    type Peer = u32;
    type Note = ();

    fn opened(&mut self, cid: Cid) -> (u32, Duration) {
        self.cids.push(cid.to_le_bytes());
        self.opened.send(()).unwrap();
        (0, Duration::from_secs(60))
    }

    fn bytes(&mut self, link: &mut Link<'_, u32>, bytes: &mut [u8]) -> usize {
        *link.peer += 1;
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

    fn due(&mut self, _: &mut Link<'_, u32>, _: Duration) {}
    fn woken(&mut self) -> Vec<(To, ())> {
        Vec::new()
    }
    fn noted(&mut self, _: &mut Link<'_, u32>, (): &()) {}
    fn ending(&mut self, link: &mut Link<'_, u32>) {
        link.outbox.send_bytes(b"end\n");
    }
    fn panicked(&mut self, link: &mut Link<'_, u32>) {
        link.outbox.send_bytes(b"sorry\n");
    }
    fn detached(&mut self, _: TcpStream, _: Vec<u8>, _: u32) {}
    fn closed(&mut self, cid: Cid, _: u32) {
        self.cids.retain(|known| *known != cid.to_le_bytes());
    }
}

struct Running {
    address: std::net::SocketAddr,
    peers: Arc<Peers>,
    opened: Receiver<()>,
    stop: Arc<AtomicBool>,
    waking: Waking,
    thread: Option<std::thread::JoinHandle<Loop<Wishes>>>,
}

fn run() -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    start(listener, Arc::default(), Vec::new())
}

/// A loop that has adopted connections, what wakes it, and what it says of new ones.
fn make(
    listener: TcpListener,
    peers: &Arc<Peers>,
    adopted: Vec<(OwnedFd, Carried<u32>)>,
) -> (Loop<Wishes>, Waking, Receiver<()>) {
    let second = Duration::from_secs(1);
    let limits = Limits { connections: 100, connections_per_address: 100, backlog: 1000, linger: second };
    let length = |bytes: &[u8]| bytes.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
    let framing = Framing { length, too_slow: b"slow\n".into(), refused: Vec::new() };
    let doors = Doors::open(1).unwrap();
    let waking = doors.waking().remove(0);
    let (sender, opened) = channel();
    let cids: Vec<_> = adopted.iter().map(|(_, one)| one.cid().to_le_bytes()).collect();
    let protocol = |_| Wishes { peers: peers.clone(), cids: cids.clone(), opened: sender.clone() };
    let mut one = doors.loops(listener, peers, &limits, framing, protocol).unwrap().remove(0);
    one.adopt(adopted).unwrap();
    (one, waking, opened)
}

fn start(listener: TcpListener, peers: Arc<Peers>, adopted: Vec<(OwnedFd, Carried<u32>)>) -> Running {
    let address = listener.local_addr().unwrap();
    let (one, waking, opened) = make(listener, &peers, adopted);
    let mut running = Running { address, peers, opened, stop: Arc::default(), waking, thread: None };
    running.go_on(one);
    running
}

/// What a loop at rest carries, as another one gets it.
fn carried(one: &mut Loop<Wishes>, peers: &Peers) -> (Arc<Peers>, Vec<(OwnedFd, Carried<u32>)>) {
    let (bytes, sockets) = one.carried(|connections, _| serde_json::to_vec(&connections).unwrap());
    let connections: Vec<Carried<u32>> = serde_json::from_slice(&bytes).unwrap();
    let cids: Vec<Cid> = connections.iter().map(Carried::cid).collect();
    let own = |socket: BorrowedFd<'_>| socket.try_clone_to_owned().unwrap();
    let connections = sockets.into_iter().map(own).zip(connections).collect();
    (Arc::new(Peers::restored(&peers.carried(), cids.into_iter())), connections)
}

impl Running {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        self.opened.recv_timeout(Duration::from_secs(30)).unwrap();
        stream
    }

    fn go_on(&mut self, mut one: Loop<Wishes>) {
        self.stop.store(false, Ordering::Relaxed);
        let ending = self.stop.clone();
        self.thread = Some(std::thread::spawn(move || {
            one.run(|| ending.load(Ordering::Relaxed)).unwrap();
            one
        }));
    }

    /// Has the loop rest.
    fn rest(&mut self) -> Loop<Wishes> {
        self.stop.store(true, Ordering::Relaxed);
        self.waking.wake();
        self.thread.take().unwrap().join().unwrap()
    }

    fn end(&mut self) {
        self.rest().end().unwrap();
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

#[test]
fn carried_connections_go_on_where_they_were() {
    let mut running = run();
    let mut streams: Vec<TcpStream> = (0..20).map(|_| running.connect()).collect();
    streams[0].write_all(b"a").unwrap();
    streams.iter_mut().for_each(|stream| assert_eq!(read(stream, 4), "all\n"));
    let mut old = running.rest();
    // One is sent more than its socket takes; another one sends while nobody reads.
    let (_, connections) = carried(&mut old, &running.peers);
    let slow = connections.iter().map(|(_, one)| one.cid()).find(|cid| cid & 0xfffff == 19).unwrap();
    let big = ".".repeat(8_000_000);
    running.peers.send(&[slow.to_le_bytes()], format!("{big}\n").as_bytes());
    streams[1].write_all(b"o").unwrap();
    drop(connections);

    let (peers, connections) = carried(&mut old, &running.peers);
    assert_eq!(connections.len(), 20);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut next = start(listener, peers, connections);
    old.abandon();
    drop(old);
    assert_eq!(read(&mut streams[1], 4), "own\n");
    streams.push(next.connect());
    streams[0].write_all(b"a").unwrap();
    for (number, stream) in streams.iter_mut().enumerate() {
        if number == 19 {
            assert_eq!(read(stream, big.len() + 1), format!("{big}\n"));
        }
        assert_eq!(read(stream, 4), "all\n");
    }
    let figures = next.peers.figures();
    assert_eq!((figures.connections, figures.accepted), (21, 21));
    next.end();
    assert_eq!(read(&mut streams[19], 4), "end\n");
}

#[test]
fn a_loop_that_adopts_and_never_runs_leaves_them_as_they_were() {
    let mut running = run();
    let mut streams: Vec<TcpStream> = (0..3).map(|_| running.connect()).collect();
    let mut old = running.rest();
    let (peers, connections) = carried(&mut old, &running.peers);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    drop(make(listener, &peers, connections));
    running.go_on(old);
    streams[0].write_all(b"a").unwrap();
    streams.iter_mut().for_each(|stream| assert_eq!(read(stream, 4), "all\n"));
    running.end();
}
