//! Where peers are. Knows rooms, users and cids; sends encoded frames to the edges that have the peers.

mod rooms;

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rooms::{Notice, Rooms};
use zephserver_plugin::contract::event::{Change, SERVICE_CHANGED, ServiceChanged};
use zephserver_plugin::contract::peer::{Cid, Delivery, SEND as EDGE_SEND};
use zephserver_plugin::contract::room::{JOIN, Join, LEAVE, Leave, Push, SEND};
use zephserver_plugin::contract::wire::Reader;
use zephserver_plugin::{
    Call, Declare, Error, Event, Handle, Host, Imported, Reply, Result, Service, Start, State, export,
    tracing,
};

struct Room {
    host: Host,
    rooms: Mutex<Rooms>,
    edges: Mutex<HashMap<String, Handle>>,
}

impl Service for Room {
    fn declare(declare: Declare) -> Declare {
        declare.state(1)
    }

    fn new(start: Start) -> Result<Self> {
        Ok(Self { host: start.host(), rooms: Mutex::default(), edges: Mutex::default() })
    }

    fn call(&self, call: Call<'_>) -> Result<Reply> {
        match call.method() {
            SEND => {
                let reached = self.send(&Push::decode(call.payload())?)?;
                call.reply(&reached.to_le_bytes())
            }
            JOIN => {
                let join: Join = call.json()?;
                if join.room.is_empty() {
                    return Err(Error::invalid("a room's name is not empty"));
                }
                let notices = self.rooms().join(join);
                self.announce(&notices);
                Reply::empty()
            }
            LEAVE => {
                let leave: Leave = call.json()?;
                let notices = self.rooms().leave(leave.cid);
                self.announce(&notices);
                Reply::empty()
            }
            _ => call.unknown_method(),
        }
    }

    fn init(&self) -> Result<()> {
        self.host.subscribe(SERVICE_CHANGED)?;
        Ok(())
    }

    /// An edge that went down has lost its peers.
    fn event(&self, event: Event<'_>) -> Result<()> {
        if let Event::Published { name: SERVICE_CHANGED, payload } = event {
            let changed: ServiceChanged = serde_json::from_slice(payload)?;
            if changed.change == Change::Down {
                let notices = self.rooms().lose_edge(&changed.service);
                self.announce(&notices);
            }
        }
        Ok(())
    }

    fn export_state(&self) -> Result<State> {
        State::json(&*self.rooms())
    }

    fn import_state(&self, state: Imported<'_>) -> Result<()> {
        *self.rooms() = state.json()?;
        Ok(())
    }
}

impl Room {
    fn rooms(&self) -> MutexGuard<'_, Rooms> {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn edge(&self, path: &str) -> Handle {
        let mut edges = self.edges.lock().unwrap_or_else(PoisonError::into_inner);
        edges.entry(path.into()).or_insert_with(|| self.host.service(path)).clone()
    }

    /// Encodes once, and hands the frame to each edge with the cids that it has.
    fn send(&self, push: &Push<'_>) -> Result<u64> {
        let by_edge = self.rooms().at(&push.address);
        if by_edge.is_empty() {
            return Ok(0);
        }
        let mut frame = Vec::with_capacity(push.task.len() + push.data.len() + 24);
        frame.extend_from_slice(b"{\"task\":");
        frame.extend_from_slice(serde_json::to_string(push.task)?.as_bytes());
        frame.extend_from_slice(b",\"data\":");
        frame.extend_from_slice(push.data);
        frame.push(b'}');
        let reached = by_edge.iter().map(|(edge, cids)| {
            // An edge that cannot take it does not keep it from the others.
            self.deliver(edge, &frame, cids).unwrap_or_else(|error| {
                tracing::warn!("a push did not reach {edge}: {error}");
                0
            })
        });
        Ok(reached.sum())
    }

    fn deliver(&self, edge: &str, frame: &[u8], cids: &[Cid]) -> Result<u64> {
        let mut payload = Vec::new();
        Delivery::encode(&mut payload, frame, cids.iter().copied());
        let reached = self.edge(edge).call(EDGE_SEND, &payload)?;
        Reader(&reached).u64()
    }

    /// Tells the members of a room who came and went. An edge that cannot take it tells of its peers
    /// again when it is back.
    fn announce(&self, notices: &[Notice]) {
        for notice in notices {
            for (edge, cids) in &notice.to {
                if let Err(error) = self.deliver(edge, notice.frame.as_bytes(), cids) {
                    tracing::warn!("a notice did not reach {edge}: {error}");
                }
            }
        }
    }
}

export!(Room);
