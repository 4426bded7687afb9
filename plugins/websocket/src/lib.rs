//! WebSocket clients: bytes to frames and back. Each file answers one question: [`handshake`] who may
//! come in, [`codec`] what is a frame, [`message`] what is in it ([`scan`] reads its JSON), [`peer`] what is kept of a connection,
//! [`sockets`] what its bytes mean, [`dispatch`] what a message means, [`asked`] who waits for an answer, [`http`] what else is served here,
//! [`crew`] how the loops keep together, [`carry`] what passes to the next generation, [`verbs`] what
//! operators can do, [`kicks`] what those of other nodes did, [`post`] who tells those nodes, and [`revoked`] whose
//! sessions ended.

mod settings;

mod codec;
mod handshake;
mod message;
mod scan;

mod asked;
mod carry;
mod crew;
mod dispatch;
mod http;
mod inbox;
mod kicks;
mod peer;
mod post;
mod revoked;
mod sockets;
mod verbs;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use carry::Inheritance;
use crew::{After, Crew, Stopped};
use dispatch::{Dispatch, Services};
use inbox::Inbox;
use kicks::Desk;
use peer::Tokens;
use settings::Settings;
use sockets::Sockets;
use verbs::Errand;
use zeph_edge::{Doors, Framing, Limits, Loop, Peers, Waking};
use zephserver_plugin::contract::event::{Change, SERVICE_CHANGED, ServiceChanged};
use zephserver_plugin::contract::page::Words;
use zephserver_plugin::contract::peer::{ASK_KICKS, Delivery, KICKS, SEND};
use zephserver_plugin::contract::session::{REVOKED, Revoked};
use zephserver_plugin::{
    Call, Declare, Error, Event, Host, Imported, Listener, Reply, Result, Service, Start, State, Stop,
    export, tracing,
};

/// How long a connection may take to end after its close frame.
const LINGER: Duration = Duration::from_secs(10);
/// How often `status` gets new numbers.
const METRICS: Duration = Duration::from_secs(5);

struct WebSocket {
    host: Host,
    settings: Arc<Settings>,
    services: Services,
    common: OnceLock<Common>,
    /// One for each loop.
    inboxes: Vec<Arc<Inbox>>,
    crew: Crew,
    waking: Mutex<Vec<Waking>>,
    /// What `init` opened for `main`.
    opened: Mutex<Option<(Listener, Doors)>>,
    /// What a generation before has left for `main`: one for each loop.
    inherited: Mutex<Vec<Inheritance>>,
    /// Loops of questions whose cookies name another one.
    strays: Mutex<HashMap<u64, usize>>,
    /// The timer for the next figures.
    figures: AtomicU64,
    kicks: Desk,
}

/// What all loops have in common: made here, or inherited.
#[derive(Default)]
struct Common {
    peers: Arc<Peers>,
    tokens: Tokens,
}

impl Service for WebSocket {
    fn declare(declare: Declare) -> Declare {
        settings::declare(declare)
            .state(carry::VERSION)
            .reports_ready()
            .verb("peers", "peers/1", "[USER] who is connected; --limit N, --offset N")
            .verb("sessions", "sessions/1", "[USER] the users who are connected; --limit N, --offset N")
            .verb("kick", "kick/1", "CID, or --user ID: closes a peer, or all peers of a user")
    }

    fn new(start: Start) -> Result<Self> {
        let host = start.host();
        let settings = Arc::new(Settings::read(&start)?);
        let service = |name: &str| Ok::<_, Error>(host.service(&start.setting::<String>(name)?));
        let services = Services {
            session: service("session")?,
            room: service("room")?,
            router: service("router")?,
            own: (start.name().into(), host.instance()),
        };
        let inboxes = (0..settings.threads).map(|_| Arc::default()).collect();
        Ok(Self {
            host,
            settings,
            services,
            common: OnceLock::new(),
            inboxes,
            crew: Crew::default(),
            waking: Mutex::default(),
            opened: Mutex::default(),
            inherited: Mutex::default(),
            strays: Mutex::default(),
            figures: AtomicU64::new(0),
            kicks: Desk::default(),
        })
    }

    fn import_state(&self, state: Imported<'_>) -> Result<()> {
        let estate = carry::estate(state, self.settings.threads)?;
        let common = Common { peers: Arc::new(estate.peers), tokens: estate.tokens };
        self.common.set(common).map_err(|_| Error::internal("state was imported twice"))?;
        *lock(&self.inherited) = estate.loops;
        *lock(&self.strays) = estate.strays;
        self.kicks.inherit(&estate.kicks, estate.up);
        Ok(())
    }

    fn init(&self) -> Result<()> {
        self.host.subscribe(SERVICE_CHANGED)?;
        self.host.subscribe(REVOKED)?;
        self.kicks.listen(&self.host)?;
        self.open()
    }

    fn main(&self, stop: &Stop) -> Result<()> {
        let Some((listener, doors)) = lock(&self.opened).take() else {
            // Run again after an error: sockets are opened anew.
            self.open()?;
            return self.main(stop);
        };
        self.set_timers()?;
        let (visitors, visited) = http::visitors();
        let mut inherited = std::mem::take(&mut *lock(&self.inherited));
        inherited.resize_with(self.settings.threads, Inheritance::default);
        let connections: Vec<_> =
            inherited.iter_mut().map(|one| std::mem::take(&mut one.connections)).collect();
        let protocol = |number: usize| {
            let Inheritance { questions, letters, .. } = std::mem::take(&mut inherited[number]);
            let inbox = self.inboxes[number].clone();
            letters.into_iter().for_each(|letters| inbox.add(letters));
            let common = (self.services.clone(), self.settings.clone());
            let dispatch = Dispatch::new(common, (inbox, self.common().tokens), number, questions);
            Sockets { settings: self.settings.clone(), dispatch, visitors: visitors.clone() }
        };
        let loops =
            doors.loops(listener.into_std(), &self.common().peers, &self.limits(), framing(), protocol)?;
        drop(visitors);
        self.crew.begin(loops.len());
        std::thread::scope(|scope| {
            let named = |name: &str| std::thread::Builder::new().name(name.into());
            let _working = self.kicks.begin();
            named("websocket-nodes").spawn_scoped(scope, || self.kicks.run(&self.host))?;
            named("websocket-http").spawn_scoped(scope, move || {
                let served = visited.serve(self.host.clone(), self.settings.page, || self.crew.has_left());
                served.unwrap_or_else(|error| tracing::error!("no HTTP: {error}"));
            })?;
            let mut crew = loops.into_iter().zip(connections).enumerate();
            let run = move |(number, (mut one, connections)): (usize, (Loop<Sockets>, _))| {
                // If one loop ends, however it does, all end: then the service begins anew.
                let _ending = Ending(self);
                one.adopt(connections)?;
                self.run(number, &mut one, stop)
            };
            let first = crew.next();
            let spawn = |one| named("websocket-loop").spawn_scoped(scope, move || run(one));
            let others = crew.map(spawn).collect::<std::io::Result<Vec<_>>>();
            let others = others.inspect_err(|_| drop(Ending(self)))?;
            let ended = first.map_or(Ok(()), run);
            for other in others {
                other.join().map_err(|_| Error::internal("a loop panicked"))??;
            }
            ended
        })
    }

    fn disable(&self) {
        self.crew.wake();
        self.wake_all();
    }

    fn freeze(&self) -> Result<()> {
        self.crew.freeze(|| self.wake_all())
    }

    fn thaw(&self) {
        self.crew.thaw();
    }

    fn export_state(&self) -> Result<State> {
        let Common { peers, tokens } = self.common();
        carry::whole(peers, *tokens, self.kicks.carried(), self.crew.carry()?)
    }

    fn call(&self, call: Call<'_>) -> Result<Reply> {
        match call.method() {
            SEND => {
                let delivery = Delivery::decode(call.payload())?;
                // Encoded once for all of them.
                let mut frame = Vec::with_capacity(delivery.frame.len() + 10);
                codec::write_text(&mut frame, delivery.frame);
                let reached = self.common().peers.send(delivery.cids(), &frame);
                call.reply(&reached.to_le_bytes())
            }
            "peers/1" => Reply::json(&verbs::peers(Words::read(call.json()?)?, |errand| self.send(errand))?),
            "sessions/1" => {
                Reply::json(&verbs::sessions(Words::read(call.json()?)?, |errand| self.send(errand))?)
            }
            "kick/1" => {
                let who = verbs::whom(&call.json::<Vec<String>>()?)?;
                let since = Instant::now();
                let closed = verbs::close_all(&who, |errand| self.send(errand));
                let say = |is_done| self.kicks.say(&self.host, &who, since, is_done);
                let (closed, told) = verbs::tell_others(&who, closed, say)?;
                Reply::json(&serde_json::json!({"closed": closed, "told": told}))
            }
            _ => call.unknown_method(),
        }
    }

    fn event(&self, event: Event<'_>) -> Result<()> {
        match event {
            Event::Reply { cookie, result, .. } => {
                // A generation before may have had other loops.
                let stray = lock(&self.strays).remove(&cookie);
                let asker = stray.unwrap_or_else(|| inbox::asker(cookie) % self.inboxes.len());
                self.inboxes[asker].put(cookie, result.map(<[u8]>::to_vec));
                lock(&self.waking).get(asker).inspect(|waking| waking.wake());
            }
            Event::Published { name: SERVICE_CHANGED, payload } => {
                let changed: ServiceChanged = serde_json::from_slice(payload)?;
                if changed.change == Change::Ready && changed.service == self.services.room.path() {
                    self.inboxes.iter().for_each(|inbox| inbox.ask_to_announce());
                    self.wake_all();
                }
            }
            Event::Published { name: REVOKED, payload } => {
                let revoked: Revoked = serde_json::from_slice(payload)?;
                self.inboxes.iter().for_each(|inbox| inbox.revoke(revoked.clone()));
                self.wake_all();
            }
            Event::Said { name: KICKS, payload } => {
                let closing = self.kicks.heard(payload);
                self.inboxes.iter().for_each(|inbox| inbox.close(&closing));
                self.wake_all();
            }
            Event::Said { name: ASK_KICKS, payload } => self.kicks.asked(payload),
            Event::Node { name, change } => self.kicks.node(name, change),
            Event::Timer { token } if token == self.figures.load(Ordering::Relaxed) => {
                self.figures.store(self.host.after(METRICS)?, Ordering::Relaxed);
                self.show_figures()?;
            }
            // Or one of a generation before: nobody minds.
            Event::Timer { .. } => self.kicks.timer(),
            _ => {}
        }
        Ok(())
    }
}

/// Ends the other loops with this one.
struct Ending<'a>(&'a WebSocket);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.crew.end();
        self.0.wake_all();
    }
}

fn framing() -> Framing {
    Framing {
        length: codec::frame_length,
        too_slow: codec::close_frame(1008, "too slow: too much waits for you"),
        refused: handshake::TOO_MANY.into(),
    }
}

impl WebSocket {
    fn common(&self) -> &Common {
        self.common.get_or_init(Common::default)
    }

    fn limits(&self) -> Limits {
        Limits {
            connections: self.settings.connections,
            connections_per_address: self.settings.connections_per_address,
            backlog: self.settings.backlog,
            linger: LINGER,
        }
    }

    /// Opens what `main` runs on.
    fn open(&self) -> Result<()> {
        let doors = Doors::open(self.settings.threads)?;
        *lock(&self.waking) = doors.waking();
        *lock(&self.opened) = Some((self.host.listen(self.settings.address)?, doors));
        Ok(())
    }

    /// Sets anew what goes on by timers. Each time that `main` runs: while it waited for that, or with the generation
    /// before, those that were due may have been lost.
    fn set_timers(&self) -> Result<()> {
        let before = self.figures.swap(self.host.after(METRICS)?, Ordering::Relaxed);
        if before != 0 {
            // It may be due already: then nobody knows it.
            let _ = self.host.cancel(before);
        }
        self.kicks.timer();
        Ok(())
    }

    /// One loop, from when it has its connections to when it has none.
    fn run(&self, number: usize, one: &mut Loop<Sockets>, stop: &Stop) -> Result<()> {
        self.crew.adopted()?;
        if number == 0 {
            self.host.ready()?;
        }
        // Until then the connections are another generation's.
        if !self.host.until_serving() {
            return Ok(());
        }
        // What was in the inbox of a generation before is in ours.
        lock(&self.waking).get(number).inspect(|waking| waking.wake());
        loop {
            one.run(|| stop.is_set() || self.crew.is_called())?;
            let part = || carry::part(one, &self.inboxes[number], self.inboxes.len());
            let stopped = || match (stop.is_set(), stop.is_replaced()) {
                (false, _) => Stopped::No,
                (true, true) => Stopped::Replaced,
                (true, false) => Stopped::Otherwise,
            };
            match self.crew.rest(number, stopped, part) {
                After::Run => {}
                After::Leave => {
                    one.abandon();
                    return Ok(());
                }
                After::End => return Ok(one.end()?),
            }
        }
    }

    /// Gives every loop an errand.
    fn send(&self, errand: Errand) {
        self.inboxes.iter().for_each(|inbox| inbox.send(errand.clone()));
        self.wake_all();
    }

    fn wake_all(&self) {
        lock(&self.waking).iter().for_each(Waking::wake);
    }

    fn show_figures(&self) -> Result<()> {
        let figures = self.common().peers.figures();
        self.host.metrics(&serde_json::json!({
            "connections": figures.connections,
            "accepted": figures.accepted,
            "refused": figures.refused,
            "too_slow": figures.too_slow,
            "panicked": figures.panicked,
            "unanswered": self.kicks.dropped(),
        }))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

export!(WebSocket);
