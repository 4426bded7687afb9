//! The panic hook of this copy: remembers message and place, for whoever catches it, and reports them.
//! No backtrace: each copy of std would read and keep the debug info for itself, tens of MB.

use std::cell::RefCell;
use std::panic::PanicHookInfo;

use crate::log;

thread_local! {
    static LAST: RefCell<String> = const { RefCell::new(String::new()) };
}

pub(crate) fn install() {
    std::panic::set_hook(Box::new(remember));
}

fn remember(info: &PanicHookInfo<'_>) {
    let message = info.payload_as_str().unwrap_or("(a panic without a text)");
    let place = info.location().map(|at| format!(" at {}:{}:{}", at.file(), at.line(), at.column()));
    let text = format!("panicked{}: {message}", place.unwrap_or_default());
    log::panicked(&text);
    // A panic while the last one is written can only come from a broken allocator: then keep the old.
    let _ = LAST.try_with(|last| last.try_borrow_mut().map(|mut last| *last = text));
}

/// The text of the panic that was caught last on this thread.
pub(crate) fn last() -> String {
    LAST.try_with(|last| std::mem::take(&mut *last.borrow_mut())).unwrap_or_default()
}
