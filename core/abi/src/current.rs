//! The call that a thread of a plugin is in at present, so that the calls it makes belong to its chain
//! without their author's doing. Each copy of a plugin has its own.

use std::cell::Cell;

use crate::types::Context;

thread_local! {
    static CURRENT: Cell<Option<*const Context<'static>>> = const { Cell::new(None) };
}

/// Until it is dropped, the thread is in the call it was made for.
pub(crate) struct Guard {
    before: Option<*const Context<'static>>,
}

/// # Safety
/// The guard must be dropped before the context is.
#[inline]
pub(crate) unsafe fn enter(context: &Context<'_>) -> Guard {
    let context = (context as *const Context<'_>).cast::<Context<'static>>();
    Guard { before: CURRENT.replace(Some(context)) }
}

impl Drop for Guard {
    #[inline]
    fn drop(&mut self) {
        CURRENT.set(self.before);
    }
}

/// Runs `f` with the context of the call that this thread is in, if it is in one.
#[inline]
pub fn with<R>(f: impl FnOnce(Option<&Context<'_>>) -> R) -> R {
    // SAFETY: `enter` was given a context that lives until its guard is dropped, and `f` cannot keep it.
    f(CURRENT.get().map(|context| unsafe { &*context }))
}
