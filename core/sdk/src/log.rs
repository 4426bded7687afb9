//! Carries this copy's `tracing` lines to the server's log.

use std::cell::Cell;
use std::fmt::{self, Write};
use std::sync::OnceLock;

use tracing::field::{Field, Visit};
use tracing::{Level, Metadata, Subscriber, span};
use zeph_abi::{Host, Report, ServiceId, with_current};

use crate::call::callee;

static HOST: OnceLock<(Host, ServiceId)> = OnceLock::new();

thread_local! {
    /// The service whose entry (other than `call`) this thread is in; 0: none.
    static SERVICE: Cell<u64> = const { Cell::new(0) };
}

/// Sends lines to `host` from now on; lines from no service are `library`'s.
pub(crate) fn install(host: Host, library: ServiceId) {
    if HOST.set((host, library)).is_ok() {
        // Refused only where the plugin set a subscriber of its own: its choice.
        let _ = tracing::subscriber::set_global_default(Forward);
    }
}

pub(crate) fn host() -> Option<Host> {
    HOST.get().map(|(host, _)| *host)
}

/// Runs an entry of a service, so that its lines carry its name.
pub(crate) fn within<R>(service: ServiceId, f: impl FnOnce() -> R) -> R {
    let before = SERVICE.replace(service.0);
    let result = f();
    SERVICE.set(before);
    result
}

/// Tells the server that this thread panics.
pub(crate) fn panicked(text: &str) {
    if let Some((host, library)) = HOST.get() {
        // A server that does not know this report has the text from the failed entry.
        let _ = host.report(speaker(*library), Report::Panic, text.as_bytes());
    }
}

fn send(level: u32, target: &str, text: &str) {
    if let Some((host, library)) = HOST.get() {
        host.log(speaker(*library), level, target, text);
    }
}

/// The service that this thread works for, or the library.
fn speaker(library: ServiceId) -> ServiceId {
    with_current(|context| context.map(callee)).unwrap_or_else(|| {
        match SERVICE.try_with(Cell::get).unwrap_or(0) {
            0 => library,
            service => ServiceId(service),
        }
    })
}

fn number(level: &Level) -> u32 {
    match *level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        Level::TRACE => 5,
    }
}

/// A subscriber that knows only events; a span's fields do not cross.
struct Forward;

impl Subscriber for Forward {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event()
            && HOST.get().is_some_and(|(host, _)| number(metadata.level()) <= host.log_level())
    }

    fn register_callsite(&self, _: &'static Metadata<'static>) -> tracing::subscriber::Interest {
        // The level may change while the server runs.
        tracing::subscriber::Interest::sometimes()
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        send(number(event.metadata().level()), event.metadata().target(), &line.0);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// The message, then `name=value` for each field.
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let written = match field.name() {
            "message" if self.0.is_empty() => write!(self.0, "{value:?}"),
            "message" => {
                let fields = std::mem::take(&mut self.0);
                write!(self.0, "{value:?}{fields}")
            }
            name => write!(self.0, " {name}={value:?}"),
        };
        // Writing to a String fails only where a value's own Debug does.
        let _ = written;
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}
