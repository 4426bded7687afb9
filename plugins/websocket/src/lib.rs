//! WebSocket clients: bytes to frames and back. Each file answers one question: [`handshake`] who may
//! come in, [`codec`] what is a frame, [`message`] what is in it ([`scan`] reads its JSON), [`peer`] what is kept of a connection,
//! [`sockets`] what its bytes mean, [`dispatch`] what a message means, [`http`] what else is served here.

mod settings;

mod codec;
mod handshake;
mod message;
mod scan;

mod dispatch;
mod http;
mod inbox;
mod peer;
mod sockets;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dispatch::{Dispatch, Services};
use inbox::Inbox;
use settings::Settings;
use sockets::Sockets;
use zeph_edge::{Doors, Framing, Limits, Loop, Peers, Waking};
use zephserver_plugin::contract::event::{Change, SERVICE_CHANGED, ServiceChanged};
use zephserver_plugin::contract::peer::{Delivery, SEND};
use zephserver_plugin::{
    Call, Declare, Error, Event, Host, Listener, Reply, Result, Service, Start, Stop, export, tracing,
};

/// How long a connection may take to end after its close frame.
const LINGER: Duration = Duration::from_secs(10);
/// How often `status` gets new numbers.
const METRICS: Duration = Duration::from_secs(5);

struct WebSocket {
    host: Host,
    settings: Arc<Settings>,
    services: Services,
    peers: Arc<Peers>,
    /// One for each loop.
    inboxes: Vec<Arc<Inbox>>,
    waking: Mutex<Vec<Waking>>,
    /// What `init` opened for `main`.
    opened: Mutex<Option<(Listener, Doors)>>,
}

impl Service for WebSocket {
    fn declare(declare: Declare) -> Declare {
        settings::declare(declare)
    }

    fn new(start: Start) -> Result<Self> {
        let host = start.host();
        let settings = Arc::new(Settings::read(&start)?);
        let service = |name: &str| Ok::<_, Error>(host.service(&start.setting::<String>(name)?));
        let services = Services {
            session: service("session")?,
            room: service("room")?,
            router: service("router")?,
            own: start.name().into(),
        };
        let inboxes = (0..settings.threads).map(|_| Arc::default()).collect();
        let (waking, opened) = (Mutex::default(), Mutex::default());
        Ok(Self { host, settings, services, peers: Arc::default(), inboxes, waking, opened })
    }

    fn init(&self) -> Result<()> {
        self.host.subscribe(SERVICE_CHANGED)?;
        self.host.every(METRICS)?;
        self.open()
    }

    fn main(&self, stop: &Stop) -> Result<()> {
        let Some((listener, doors)) = lock(&self.opened).take() else {
            // Run again after an error: sockets are opened anew.
            self.open()?;
            return self.main(stop);
        };
        let (visitors, visited) = http::visitors();
        let protocol = |number: usize| {
            let inbox = self.inboxes[number].clone();
            let dispatch = Dispatch::new(self.services.clone(), self.settings.clone(), inbox, number);
            Sockets { settings: self.settings.clone(), dispatch, visitors: visitors.clone() }
        };
        let limits = Limits {
            connections: self.settings.connections,
            connections_per_address: self.settings.connections_per_address,
            backlog: self.settings.backlog,
            linger: LINGER,
        };
        let framing = Framing {
            length: codec::frame_length,
            too_slow: codec::close_frame(1008, "too slow: too much waits for you"),
            refused: handshake::TOO_MANY.into(),
        };
        let mut loops = doors.loops(listener.into_std(), &self.peers, &limits, framing, protocol)?;
        drop(visitors);
        let all_end = &AtomicBool::new(false);
        let run = |mut one: Loop<Sockets>| {
            // If one loop ends, however it does, all end: then the service begins anew.
            let _ending = Ending(self, all_end);
            one.run(|| stop.is_set() || all_end.load(Ordering::Relaxed))
        };
        std::thread::scope(|scope| {
            let named = |name: &str| std::thread::Builder::new().name(name.into());
            named("websocket-http").spawn_scoped(scope, move || {
                let served = visited.serve(self.host.clone(), self.settings.page);
                served.unwrap_or_else(|error| tracing::error!("no HTTP: {error}"));
            })?;
            let (first, run) = (loops.remove(0), &run);
            let spawn = |one| named("websocket-loop").spawn_scoped(scope, move || run(one));
            let others = loops.into_iter().map(spawn).collect::<std::io::Result<Vec<_>>>();
            let others = others.inspect_err(|_| drop(Ending(self, all_end)))?;
            let ended = run(first);
            for other in others {
                other.join().map_err(|_| Error::internal("a loop panicked"))??;
            }
            Ok(ended?)
        })
    }

    fn disable(&self) {
        self.wake_all();
    }

    fn call(&self, call: Call<'_>) -> Result<Reply> {
        match call.method() {
            SEND => {
                let delivery = Delivery::decode(call.payload())?;
                // Encoded once for all of them.
                let mut frame = Vec::with_capacity(delivery.frame.len() + 10);
                codec::write_text(&mut frame, delivery.frame);
                let reached = self.peers.send(delivery.cids(), &frame);
                call.reply(&reached.to_le_bytes())
            }
            _ => call.unknown_method(),
        }
    }

    fn event(&self, event: Event<'_>) -> Result<()> {
        match event {
            Event::Reply { cookie, result, .. } => {
                let asker = inbox::asker(cookie);
                if let Some(inbox) = self.inboxes.get(asker) {
                    inbox.put(cookie, result.map(<[u8]>::to_vec));
                    lock(&self.waking).get(asker).inspect(|waking| waking.wake());
                }
            }
            Event::Published { name: SERVICE_CHANGED, payload } => {
                let changed: ServiceChanged = serde_json::from_slice(payload)?;
                if changed.change == Change::Ready && changed.service == self.services.room.path() {
                    self.inboxes.iter().for_each(|inbox| inbox.ask_to_announce());
                    self.wake_all();
                }
            }
            Event::Timer { .. } => self.show_figures()?,
            _ => {}
        }
        Ok(())
    }
}

/// Ends the other loops with this one.
struct Ending<'a>(&'a WebSocket, &'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.1.store(true, Ordering::Relaxed);
        self.0.wake_all();
    }
}

impl WebSocket {
    /// Opens what `main` runs on.
    fn open(&self) -> Result<()> {
        let doors = Doors::open(self.settings.threads)?;
        *lock(&self.waking) = doors.waking();
        *lock(&self.opened) = Some((self.host.listen(self.settings.address)?, doors));
        Ok(())
    }

    fn wake_all(&self) {
        lock(&self.waking).iter().for_each(Waking::wake);
    }

    fn show_figures(&self) -> Result<()> {
        let figures = self.peers.figures();
        self.host.metrics(&serde_json::json!({
            "connections": figures.connections,
            "accepted": figures.accepted,
            "refused": figures.refused,
            "too_slow": figures.too_slow,
            "panicked": figures.panicked,
        }))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

export!(WebSocket);
