//! A living service, seen from the server: the safe face of an instance pointer and its table.

use std::ffi::c_void;
use std::os::fd::RawFd;

use crate::root_table::RootV1Ref;
use crate::types::{Bytes, Context, Event, Failure, Out, Outcome, ServiceId, Sink, StopReason, status};

/// One instance of a service. Destroyed when dropped, so whoever may still call it shares it.
pub struct Instance {
    root: RootV1Ref,
    instance: *mut c_void,
}

// SAFETY: `PluginSide::Instance` is Send + Sync, and a library is never unloaded.
unsafe impl Send for Instance {}
// SAFETY: as above.
unsafe impl Sync for Instance {}

/// State as it was exported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// The service's own bytes.
    pub bytes: Vec<u8>,
    /// Descriptors that the bytes refer to by index.
    pub fds: Vec<RawFd>,
}

fn ask(f: impl FnOnce(Sink) -> Outcome) -> Result<(u64, Vec<u8>), Failure> {
    let mut bytes = Vec::new();
    let outcome = Sink::into_vec(&mut bytes, f);
    match outcome.status {
        status::DONE => Ok((outcome.value, bytes)),
        status => Err(Failure::new(status, String::from_utf8_lossy(&bytes))),
    }
}

impl Instance {
    pub(crate) fn create(
        root: RootV1Ref,
        id: ServiceId,
        kind: &str,
        name: &str,
        settings: &[u8],
    ) -> Result<Self, Failure> {
        let (kind, name) = (Bytes::new(kind.as_bytes()), Bytes::new(name.as_bytes()));
        let (instance, _) = ask(|sink| root.create()(id.0, kind, name, Bytes::new(settings), sink))?;
        Ok(Self { root, instance: instance as *mut c_void })
    }

    /// Gives it the state of a predecessor.
    pub fn import_state(&self, version: u32, state: &Exported) -> Result<(), Failure> {
        let (bytes, fds) = (Bytes::new(&state.bytes), &state.fds);
        ask(|sink| self.root.import_state()(self.instance, version, bytes, fds.as_ptr(), fds.len(), sink))
            .map(drop)
    }

    /// Lets it open, subscribe and call.
    pub fn init(&self) -> Result<(), Failure> {
        ask(|sink| self.root.init()(self.instance, sink)).map(drop)
    }

    /// Runs its `main` on this thread.
    pub fn main(&self) -> Result<(), Failure> {
        ask(|sink| self.root.main()(self.instance, sink)).map(drop)
    }

    /// Calls a method. The reply, or the error's text, goes to `reply`.
    #[inline]
    pub fn call(&self, context: &Context<'_>, method: &[u8], payload: &[u8], reply: &mut Out<'_>) -> Outcome {
        self.root.call()(self.instance, context, Bytes::new(method), Bytes::new(payload), reply.sink())
    }

    /// Tells it an event.
    pub fn event(&self, event: &Event<'_>) -> Result<(), Failure> {
        let event = event.to_v1();
        ask(|sink| self.root.event()(self.instance, &event, sink)).map(drop)
    }

    /// Lets it change nothing until `thaw` or `stop`.
    pub fn freeze(&self) -> Result<(), Failure> {
        ask(|sink| self.root.freeze()(self.instance, sink)).map(drop)
    }

    /// Lets it go on after `freeze`.
    pub fn thaw(&self) -> Result<(), Failure> {
        ask(|sink| self.root.thaw()(self.instance, sink)).map(drop)
    }

    /// Asks its `main` to return.
    pub fn stop(&self, reason: StopReason) -> Result<(), Failure> {
        ask(|sink| self.root.stop()(self.instance, reason as u32, sink)).map(drop)
    }

    /// Takes its state. The descriptors stay its own: its successor duplicates those that it wants.
    pub fn export_state(&self) -> Result<Exported, Failure> {
        let mut fds = Vec::new();
        let (_, bytes) = Sink::into_vec(&mut fds, |fd_sink| {
            ask(|sink| self.root.export_state()(self.instance, sink, fd_sink))
        })?;
        let fds = fds.chunks_exact(4).map(|fd| RawFd::from_ne_bytes([fd[0], fd[1], fd[2], fd[3]]));
        Ok(Exported { bytes, fds: fds.collect() })
    }

    /// What it would begin with after a crash, if it keeps such a thing. Reserved: services leave their
    /// checkpoints themselves, with `Report::Checkpoint`.
    pub fn checkpoint(&self) -> Result<Option<Vec<u8>>, Failure> {
        let (kept, bytes) = ask(|sink| self.root.checkpoint()(self.instance, sink))?;
        Ok((kept == 1).then_some(bytes))
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.root.destroy()(self.instance);
    }
}
