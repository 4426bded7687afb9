//! WebSocket clients: bytes to frames and back. Each file answers one question: [`handshake`] who may
//! come in, [`codec`] what is a frame, [`message`] what is in it, [`dispatch`] what it means,
//! [`outbox`] how a peer is sent to, [`edge`] who is ready.

mod codec;
mod dispatch;
mod edge;
mod handshake;
mod message;
mod outbox;
mod peers;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use dispatch::{Dispatch, Inbox, Services};
use edge::Edge;
use mio::{Poll, Waker};
use peers::Peers;
use zephserver_plugin::contract::event::{Change, SERVICE_CHANGED, ServiceChanged};
use zephserver_plugin::contract::peer::{Delivery, SEND};
use zephserver_plugin::{
    Call, Declare, Error, Event, Host, Listener, Reply, Result, Service, Start, Stop, export,
};

struct WebSocket {
    host: Host,
    address: SocketAddr,
    path: String,
    services: Services,
    peers: Peers,
    inbox: Arc<Inbox>,
    /// What `init` opened for `main`.
    opened: Mutex<Option<(Listener, Poll)>>,
    waker: Mutex<Option<Arc<Waker>>>,
}

impl Service for WebSocket {
    fn declare(declare: Declare) -> Declare {
        declare
            .setting("port", 8080, "the port to listen on; 0: a free one")
            .alias("PORT_ZEPH")
            .setting("address", "127.0.0.1", "the address to listen on")
            .setting("path", "/ws", "the path of the WebSocket")
            .setting("session", "session/Session", "the service that knows who a peer is")
            .alias("MY_SESSION_HANDLER")
            .setting("room", "room/Room", "the service that keeps the rooms")
            .alias("MY_ROOM_HANDLER")
            .setting("router", "router/Router", "the service that runs tasks")
            .needs_setting("session")
            .needs_setting("room")
            .needs_setting("router")
    }

    fn new(start: Start) -> Result<Self> {
        let host = start.host();
        let address: IpAddr = start
            .setting::<String>("address")?
            .parse()
            .map_err(|_| Error::invalid("[websocket] address is an IP address, such as \"127.0.0.1\""))?;
        let service = |name: &str| Ok::<_, Error>(host.service(&start.setting::<String>(name)?));
        Ok(Self {
            address: SocketAddr::new(address, start.setting("port")?),
            path: start.setting("path")?,
            services: Services {
                session: service("session")?,
                room: service("room")?,
                router: service("router")?,
                own: start.name().into(),
            },
            host,
            peers: Peers::default(),
            inbox: Arc::default(),
            opened: Mutex::new(None),
            waker: Mutex::new(None),
        })
    }

    fn init(&self) -> Result<()> {
        let poll = Poll::new()?;
        *lock(&self.waker) = Some(Arc::new(Edge::<Dispatch>::waker(&poll)?));
        self.host.subscribe(SERVICE_CHANGED)?;
        *lock(&self.opened) = Some((self.host.listen(self.address)?, poll));
        Ok(())
    }

    fn main(&self, stop: &Stop) -> Result<()> {
        let Some((listener, poll)) = lock(&self.opened).take() else {
            // Run again after an error: sockets are opened anew.
            self.init()?;
            return self.main(stop);
        };
        let dispatch = Dispatch::new(self.services.clone(), self.inbox.clone());
        let mut edge = Edge::new(poll, listener.into_std(), &self.path, &self.peers, dispatch)?;
        Ok(edge.run(stop)?)
    }

    fn disable(&self) {
        self.wake();
    }

    fn call(&self, call: Call<'_>) -> Result<Reply> {
        match call.method() {
            SEND => {
                let delivery = Delivery::decode(call.payload())?;
                // Encoded once for all of them.
                let mut frame = Vec::with_capacity(delivery.frame.len() + 10);
                codec::write(&mut frame, codec::Opcode::Text, delivery.frame);
                let reached = self.peers.send_raw(delivery.cids(), &frame);
                call.reply(&reached.to_le_bytes())
            }
            _ => call.unknown_method(),
        }
    }

    fn event(&self, event: Event<'_>) -> Result<()> {
        match event {
            Event::Reply { cookie, result, .. } => {
                self.inbox.put(cookie, result.map(<[u8]>::to_vec));
                self.wake();
            }
            Event::Published { name: SERVICE_CHANGED, payload } => {
                let changed: ServiceChanged = serde_json::from_slice(payload)?;
                if changed.change == Change::Ready && changed.service == self.services.room.path() {
                    self.inbox.ask_to_announce();
                    self.wake();
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl WebSocket {
    fn wake(&self) {
        if let Some(waker) = lock(&self.waker).as_ref() {
            // It fails only where the loop has ended.
            let _ = waker.wake();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

export!(WebSocket);
