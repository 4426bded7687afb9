//! From the author's types to the plugin's table: the SDK's side of the boundary.

use std::marker::PhantomData;
use std::os::fd::RawFd;

use zeph_abi::{
    Context, Declaration, EventKind, Failure, Out, Outcome, PluginSide, ServiceDeclaration, ServiceId,
    StopReason,
};

use crate::call::{Call, Kind as Answer};
use crate::event::Event;
use crate::failure::to_failure;
use crate::host::Host;
use crate::service::{AnyService, Declare, Service};
use crate::start::Start;
use crate::state::Imported;
use crate::stop::Stop;
use crate::task::{TaskKind, Tasks};
use crate::{Code, Error, Result, log, panic, waiting};

/// What `export!` makes of a crate.
pub trait Plugin: 'static {
    /// The library's name.
    const NAME: &'static str;
    /// The crate's version.
    const VERSION: &'static str;
    /// Its services.
    fn services() -> Vec<Kind>;
    /// Its tasks.
    fn tasks() -> Vec<TaskKind>;
}

type Make = Box<dyn Fn(Start) -> Result<Box<dyn AnyService>>>;

/// One kind of service of a plugin.
pub struct Kind {
    declaration: ServiceDeclaration,
    make: Make,
}

/// The [`Kind`] of a type.
pub fn kind<S: Service>(name: &str) -> Kind {
    let Declare(declaration) = S::declare(Declare::default());
    Kind {
        declaration: ServiceDeclaration { kind: name.into(), ..declaration },
        make: Box::new(|start| Ok(Box::new(S::new(start)?))),
    }
}

/// The kind of service that runs a plugin's tasks.
pub fn task_kind(tasks: fn() -> Vec<TaskKind>) -> Kind {
    Kind {
        declaration: ServiceDeclaration { kind: "Tasks".into(), ..ServiceDeclaration::default() },
        make: Box::new(move |start| Ok(Box::new(Tasks::with(tasks(), &start)))),
    }
}

fn kinds<P: Plugin>() -> Vec<Kind> {
    let mut kinds = P::services();
    if !P::tasks().is_empty() {
        kinds.push(task_kind(P::tasks));
    }
    kinds
}

/// A living service with what the SDK keeps beside it.
pub struct Living {
    host: Host,
    stop: Stop,
    service: Box<dyn AnyService>,
}

impl Living {
    /// Runs one entry under the service's name, and turns its error into a failure.
    fn enter<T>(&self, f: impl FnOnce(&dyn AnyService) -> Result<T>) -> Result<T, Failure> {
        log::within(self.host.id, || f(&*self.service)).map_err(|error| {
            // A panic of somebody else, passed on, is an error like others.
            let code = if error.code == Code::Panicked { Code::Internal } else { error.code };
            to_failure(Error { code, ..error })
        })
    }
}

/// The table's implementation for a plugin.
pub struct Adapter<P>(PhantomData<P>);

impl<P: Plugin> PluginSide for Adapter<P> {
    type Instance = Living;

    fn setup(host: zeph_abi::Host, library: ServiceId) -> Result<(), Failure> {
        panic::install();
        log::install(host, library);
        Ok(())
    }

    fn info() -> Result<Vec<u8>, Failure> {
        let declaration = Declaration {
            plugin: P::NAME.into(),
            version: P::VERSION.into(),
            sdk: env!("CARGO_PKG_VERSION").into(),
            services: kinds::<P>().into_iter().map(|kind| kind.declaration).collect(),
            tasks: P::tasks().into_iter().map(|task| task.declaration).collect(),
        };
        serde_json::to_vec(&declaration).map_err(|error| to_failure(error.into()))
    }

    fn create(id: ServiceId, kind: &str, name: &str, settings: &[u8]) -> Result<Living, Failure> {
        log::within(id, || {
            let abi = log::host().ok_or_else(|| Error::internal("create came before setup"))?;
            let stop = Stop::default();
            let host = Host::new(id, name, abi, stop.clone());
            let start = Start::new(name, settings, host.clone())?;
            let kinds = kinds::<P>();
            let Some(kind) = kinds.iter().find(|known| known.declaration.kind == kind) else {
                let known = kinds.iter().map(|kind| kind.declaration.kind.as_str()).collect::<Vec<_>>();
                return Err(Error::not_found(format!(
                    "plugin `{}` has no service `{kind}`; it has: {}",
                    P::NAME,
                    known.join(", ")
                )));
            };
            Ok(Living { host, stop, service: (kind.make)(start)? })
        })
        .map_err(to_failure)
    }

    fn import_state(living: &Living, version: u32, bytes: &[u8], fds: &[RawFd]) -> Result<(), Failure> {
        living.enter(|service| service.import_state(Imported { version, bytes, fds }))
    }

    fn init(living: &Living) -> Result<(), Failure> {
        living.enter(|service| service.init())
    }

    fn main(living: &Living) -> Result<(), Failure> {
        living.enter(|service| service.main(&living.stop))
    }

    #[inline]
    fn call(
        living: &Living,
        context: &Context<'_>,
        method: &[u8],
        payload: &[u8],
        reply: &mut Out<'_>,
    ) -> Outcome {
        let result = match std::str::from_utf8(method) {
            Ok(method) => {
                let out = reply.reborrow();
                living.service.call(Call { context, method, payload, out, host: &living.host })
            }
            Err(_) => Err(Error::new(Code::Unsupported, "the method's name is not UTF-8")),
        };
        match result.map(|reply| reply.0) {
            Ok(Answer::Sent) => Outcome::done(0),
            Ok(Answer::Bytes(bytes)) => {
                reply.put(&bytes);
                Outcome::done(0)
            }
            Ok(Answer::Later(token)) => Outcome::pending(token),
            // The text is there already.
            Ok(Answer::Failed(status)) => Outcome::passed_on(status),
            Err(error) => {
                reply.put(error.text.as_bytes());
                Outcome::passed_on(error.code.number())
            }
        }
    }

    fn event(living: &Living, event: &zeph_abi::Event<'_>) -> Result<(), Failure> {
        if event.kind == EventKind::Serving {
            living.stop.set_serving();
            return Ok(());
        }
        if waiting::take(event) {
            return Ok(());
        }
        living.enter(|service| service.event(Event::from_abi(event)))
    }

    fn freeze(living: &Living) -> Result<(), Failure> {
        living.enter(|service| service.freeze())
    }

    fn thaw(living: &Living) -> Result<(), Failure> {
        living.enter(|service| {
            service.thaw();
            Ok(())
        })
    }

    fn stop(living: &Living, reason: StopReason) -> Result<(), Failure> {
        if !living.stop.set(reason) {
            return Ok(());
        }
        living.enter(|service| {
            service.disable();
            Ok(())
        })
    }

    fn export_state(living: &Living) -> Result<(Vec<u8>, Vec<RawFd>), Failure> {
        let state = living.enter(|service| service.export_state())?;
        Ok((state.bytes, state.fds))
    }

    fn checkpoint(_: &Living) -> Result<Option<Vec<u8>>, Failure> {
        // Services leave their checkpoints themselves: `Host::checkpoint`.
        Ok(None)
    }

    fn panic_text() -> String {
        panic::last()
    }
}
