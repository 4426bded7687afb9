//! Nodes on real sockets, and strangers at their doors.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream, UdpSocket as StdUdp};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};

use tokio::net::TcpStream;

use super::*;
use crate::{Change, MemberState, Said};

const DEADLINE: Duration = Duration::from_secs(20);

fn here() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn keys(text: &str) -> Keys {
    let file = std::env::temp_dir().join(format!("zephserver-mesh-{}-{}", std::process::id(), text.len()));
    let name = format!(
        "{}-{:x}",
        file.display(),
        text.bytes().fold(7u64, |sum, b| sum.wrapping_mul(31) + u64::from(b))
    );
    let file = std::path::PathBuf::from(name);
    std::fs::write(&file, text).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let keys = Keys::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    keys
}

fn key(letter: &str) -> String {
    letter.repeat(64)
}

fn node(name: &str, seeds: &[&Mesh], keys: Option<Keys>) -> Mesh {
    let seeds = seeds.iter().map(|seed| address(seed).to_string()).collect();
    Mesh::start(MeshOptions { node: name.into(), listen: here(), seeds, keys, profile: Profile::Fast })
        .unwrap()
}

fn address(mesh: &Mesh) -> SocketAddr {
    mesh.status().address.unwrap().parse().unwrap()
}

fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < end, "waited {} s until {what}", DEADLINE.as_secs());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn sees(mesh: &Mesh, other: &str) -> bool {
    let up = |member: &crate::Member| member.node == other && member.state == MemberState::Up;
    mesh.status().members.iter().any(up)
}

fn meet(one: &Mesh, other: &Mesh) {
    wait("both see one another", || sees(one, other.node()) && sees(other, one.node()));
}

fn hear(mesh: &Mesh) -> (Receiver<Said>, Subscription) {
    let (sender, receiver) = channel();
    let sender = Mutex::new(sender);
    let subscription = mesh.subscribe(
        "event",
        Arc::new(move |said| {
            let _ = sender.lock().unwrap().send(said.clone());
        }),
    );
    (receiver, subscription)
}

/// What one says reaches the other: the door has taken no harm.
fn talk(one: &Mesh, other: &Mesh) {
    let (heard, _subscription) = hear(other);
    one.tell(other.node(), "event", b"still here").unwrap();
    assert_eq!(&heard.recv_timeout(DEADLINE).unwrap().payload[..], b"still here");
}

/// A connection ends from the other side, and says nothing more than this many bytes before.
fn ends(stream: &mut StdStream, within: Duration) -> usize {
    stream.set_read_timeout(Some(within)).unwrap();
    let mut count = 0;
    let mut buffer = [0; 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return count,
            Ok(more) => count += more,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return count,
            Err(error) => panic!("it was not closed: {error}"),
        }
    }
}

#[test]
fn strangers_are_refused_and_do_no_harm() {
    let (a, b);
    a = node("a", &[], Some(keys(&key("1"))));
    b = node("b", &[&a], Some(keys(&key("1"))));
    meet(&a, &b);
    let before = a.status().refused;
    for bytes in [
        &[0xff; 48][..],
        &[0; 65_536],
        b"GET / HTTP/1.1\r\n\r\n",
        &[a_key_id(), 0xff, 0xff],
        &[a_key_id(), 48, 0],
    ] {
        let mut stream = StdStream::connect(address(&a)).unwrap();
        let _ = stream.write_all(bytes);
        assert_eq!(ends(&mut stream, Duration::from_secs(5)), 0, "a stranger is told nothing");
    }
    // Nothing at all is said on this one.
    let mut silent = StdStream::connect(address(&a)).unwrap();
    assert_eq!(ends(&mut silent, Duration::from_secs(5)), 0);
    let udp = StdUdp::bind(here()).unwrap();
    for length in [0, 1, 25, 100, 1400] {
        udp.send_to(&vec![a_key_id(); length], address(&a)).unwrap();
    }
    wait("all of them are counted", || a.status().refused >= before + 11);
    talk(&a, &b);
    talk(&b, &a);

    fn a_key_id() -> u8 {
        keys(&key("1")).own().id
    }
}

#[test]
fn nodes_with_another_key_never_meet() {
    let a = node("a", &[], Some(keys(&key("1"))));
    let stranger = node("stranger", &[&a], Some(keys(&key("2"))));
    let friend = node("friend", &[&a], Some(keys(&key("1"))));
    meet(&a, &friend);
    wait("the stranger was refused", || a.status().refused > 0);
    assert!(!sees(&a, "stranger") && stranger.status().members.is_empty());
    talk(&a, &friend);
}

#[test]
fn a_key_is_replaced_node_by_node() {
    let (old, new) = (key("1"), key("2"));
    let a = node("a", &[], Some(keys(&format!("{old}\n{new}"))));
    let b = node("b", &[&a], Some(keys(&format!("{new}\n{old}"))));
    meet(&a, &b);
    talk(&a, &b);
    talk(&b, &a);
}

#[test]
fn a_first_message_that_comes_again_leads_nowhere() {
    let a = node("a", &[], Some(keys(&key("1"))));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // What a real node sends first, taken down on the way.
    let between = StdListener::bind(here()).unwrap();
    let way = between.local_addr().unwrap();
    let taken_down = std::thread::spawn(move || {
        let mut stream = between.accept().unwrap().0;
        let mut bytes = vec![0; 3 + 48];
        stream.read_exact(&mut bytes).unwrap();
        bytes
    });
    let dialed = runtime.block_on(async {
        let stream = TcpStream::connect(way).await.unwrap();
        noise::dial(stream, &keys(&key("1"))).await
    });
    assert!(dialed.is_err(), "whoever is between has no key");
    let first = taken_down.join().unwrap();

    let refused = a.status().refused;
    let mut again = StdStream::connect(address(&a)).unwrap();
    again.write_all(&first).unwrap();
    let answer = ends(&mut again, Duration::from_secs(5));
    assert!(answer > 0 && answer < 256, "it gets the second message, and then its time is over");
    let mut sealed_wrong = StdStream::connect(address(&a)).unwrap();
    sealed_wrong.write_all(&first).unwrap();
    sealed_wrong.write_all(&[32, 0]).unwrap();
    sealed_wrong.write_all(&[7; 32]).unwrap();
    ends(&mut sealed_wrong, Duration::from_secs(2));
    wait("both are counted", || a.status().refused >= refused + 2);
    assert!(a.status().members.is_empty());
    let b = node("b", &[&a], Some(keys(&key("1"))));
    meet(&a, &b);
    talk(&b, &a);
}

#[test]
fn one_with_the_key_who_speaks_nonsense_is_refused() {
    let a = node("a", &[], None);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let hello = |boot: u64| {
        let from = Identity::new(here(), "x", 1);
        let mut bytes = Vec::new();
        frame::hello(&frame::Hello { from, to_boot: boot, has: 0 }, &mut bytes);
        bytes
    };
    let too_long = u32::MAX.to_le_bytes().to_vec();
    let (mut an_event, event) = (hello(0), frame::event(1, "event", b""));
    an_event.extend_from_slice(&event);
    for bytes in [too_long, hello(0), event, vec![0, 0, 0, 0], vec![1, 0, 0, 0, 99]] {
        let refused = a.status().refused;
        let ended = runtime.block_on(async {
            let stream = TcpStream::connect(address(&a)).await.unwrap();
            let mut sealed = noise::dial(stream, &Keys::of_everybody()).await.unwrap();
            sealed.writer.write(&bytes).await.unwrap();
            tokio::time::timeout(Duration::from_secs(5), sealed.reader.more()).await
        });
        assert!(ended.expect("it is closed").is_err());
        wait("it is counted", || a.status().refused > refused);
    }
    let b = node("b", &[&a], None);
    meet(&a, &b);
    talk(&a, &b);
}

#[test]
fn many_half_open_connections_keep_nobody_out_for_long() {
    let a = node("a", &[], None);
    let silent: Vec<_> = (0..200).map(|_| StdStream::connect(address(&a)).unwrap()).collect();
    let b = node("b", &[&a], None);
    meet(&a, &b);
    talk(&b, &a);
    drop(silent);
}

#[test]
fn silent_connections_make_room_for_whoever_says_who_it_is() {
    let a = node("a", &[], None);
    // As many as may be at it at once, and not for so long that their time is over.
    let mut silent: Vec<_> = (0..64).map(|_| StdStream::connect(address(&a)).unwrap()).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let dial = || {
        runtime.block_on(async {
            let stream = TcpStream::connect(address(&a)).await.unwrap();
            noise::dial(stream, &Keys::of_everybody()).await.map_err(|error| error.to_string())
        })
    };
    let dialed = [dial(), dial(), dial()];
    for sealed in &dialed {
        assert_eq!(sealed.as_ref().err(), None, "it is let in at once");
    }
    // The first ones had to go for it, and are counted; nobody else had.
    for silent in &mut silent[..3] {
        assert_eq!(ends(silent, Duration::from_secs(1)), 0);
    }
    wait("they are counted", || a.status().refused >= 3);
    silent[63].set_nonblocking(true).unwrap();
    assert_eq!(silent[63].read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn junk_is_counted_without_the_node() {
    let a = node("a", &[], None);
    let (address, refused) = (address(&a), a.shared.refused());
    let udp = StdUdp::bind(here()).unwrap();
    // While somebody else has it.
    a.shared.with(|_| {
        for _ in 0..100 {
            udp.send_to(&[0; 100], address).unwrap();
        }
        wait("all are counted", || a.shared.refused() == refused + 100);
    });
}

#[test]
fn a_connection_that_was_closed_before_it_was_made_ends() {
    let a = node("a", &[], None);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ended = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(here()).await.unwrap();
        // The node has closed it already: it knows no connection of this number.
        a.shared.act(node::Action::Dial { conn: 1000, to: listener.local_addr().unwrap() });
        let (stream, _) = listener.accept().await.unwrap();
        // This waits for the first sealed bytes after the handshake, and would do so for ever.
        tokio::time::timeout(Duration::from_secs(2), noise::accept(stream, &Keys::of_everybody())).await
    });
    let error = ended.expect("it ends").err().map(|error| error.kind());
    assert_eq!(error, Some(io::ErrorKind::UnexpectedEof));
}

#[test]
fn beyond_this_machine_nobody_listens_without_a_key() {
    let start = |listen: &str| {
        let listen = listen.parse().unwrap();
        Mesh::start(MeshOptions {
            node: "a".into(),
            listen,
            seeds: vec![],
            keys: None,
            profile: Profile::Lan,
        })
    };
    assert!(matches!(start("10.0.0.1:0"), Err(MeshError::NoKey(_))));
    assert!(matches!(start("0.0.0.0:0"), Err(MeshError::Anywhere(_))));
}

#[test]
fn who_takes_nothing_is_evicted_and_told_of_a_gap_and_nobody_else_loses_anything() {
    let (a, b, c) = three();
    let (heard, _heard) = hear(&b);
    // The handler of `c` stands still until it is let go.
    let stop = Arc::new(Mutex::new(()));
    let stopped = stop.lock().unwrap();
    let (sender, at_c) = channel();
    let (sender, stop_at_c) = (Mutex::new(sender), stop.clone());
    let _at_c = c.subscribe(
        "event",
        Arc::new(move |said| {
            drop(stop_at_c.lock());
            let _ = sender.lock().unwrap().send(said.seq);
        }),
    );
    let (changes, _changes) = watch(&c);
    let (evicted, _evicted) = watch(&a);
    let payload = vec![b'x'; 64 * 1024];
    const EVENTS: u64 = 4000;
    for _ in 0..EVENTS {
        a.say("event", &payload).unwrap();
    }
    let first = heard.recv_timeout(DEADLINE).unwrap().seq;
    for seq in first + 1..first + EVENTS {
        assert_eq!(heard.recv_timeout(DEADLINE).unwrap().seq, seq);
    }
    assert!(evicted.try_iter().any(|change| change == Change::Evicted("c".into())));
    drop(stopped);
    // What it gets at the end is the last one, and what it lacks it was told of.
    let mut got = Vec::new();
    while got.last() != Some(&(first + EVENTS - 1)) {
        got.push(at_c.recv_timeout(DEADLINE).unwrap());
    }
    let gaps: Vec<(u64, u64)> = changes
        .try_iter()
        .filter_map(|change| match change {
            Change::Gap { from, to, .. } => Some((from, to)),
            _ => None,
        })
        .collect();
    assert!(!gaps.is_empty());
    let missing = (first..first + EVENTS).filter(|seq| got.binary_search(seq).is_err());
    for seq in missing {
        assert!(gaps.iter().any(|(from, to)| (from..=to).contains(&&seq)), "nobody was told of {seq}");
    }
}

#[test]
fn a_cut_connection_is_made_again_at_once_and_nothing_is_lost_or_comes_twice() {
    let (a, b, c) = three();
    let (heard, _heard) = hear(&b);
    let (changes, _changes) = watch(&b);
    const ROUNDS: u64 = 30;
    const EVENTS: u64 = 300;
    for round in 0..ROUNDS {
        for number in 0..EVENTS {
            a.say("event", format!("{}", round * EVENTS + number).as_bytes()).unwrap();
            if number == EVENTS / 2 {
                // From either side.
                if round.is_multiple_of(2) { a.shared.cut() } else { b.shared.cut() }
            }
        }
        for number in 0..EVENTS {
            let said = heard.recv_timeout(DEADLINE).unwrap();
            assert_eq!(said.payload, (round * EVENTS + number).to_string());
        }
    }
    assert!(heard.try_recv().is_err());
    let no_change = |change: Change| matches!(change, Change::Up(_));
    assert!(changes.try_iter().all(no_change), "a cut is no reason to take anybody for dead, nor a gap");
    let of_b = |status: Status| status.members.into_iter().find(|member| member.node == "b").unwrap();
    assert!(of_b(a.status()).outgoing.connections > ROUNDS / 2);
    a.shared.cut();
    let began = Instant::now();
    a.tell("b", "event", b"once more").unwrap();
    assert_eq!(heard.recv_timeout(DEADLINE).unwrap().payload, "once more");
    assert!(began.elapsed() < Duration::from_secs(2), "nobody waits for membership to find out");
    drop(c);
}

fn watch(mesh: &Mesh) -> (Receiver<Change>, Subscription) {
    let (sender, receiver) = channel();
    let sender = Mutex::new(sender);
    let subscription = mesh.watch(Arc::new(move |change| {
        let _ = sender.lock().unwrap().send(change.clone());
    }));
    (receiver, subscription)
}

fn three() -> (Mesh, Mesh, Mesh) {
    let a = node("a", &[], None);
    let b = node("b", &[&a], None);
    let c = node("c", &[&a], None);
    meet(&a, &b);
    meet(&a, &c);
    meet(&b, &c);
    (a, b, c)
}
