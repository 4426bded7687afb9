//! What this copy of the plugin waits for: streams that it reads, and pending calls whose cancellation
//! or credit it must hear of. Filled from events before the service sees them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use zeph_abi::{Event, EventKind, ServiceId};

use crate::{Code, Result, event};

/// Cookies that the SDK gives itself have this bit.
const OWN: u64 = 1 << 63;

type Item = Result<Option<Vec<u8>>>;

#[derive(Default)]
struct Waiting {
    streams: HashMap<u64, Sender<Item>>,
    pending: HashMap<u64, Arc<AtomicBool>>,
}

static WAITING: Mutex<Option<Waiting>> = Mutex::new(None);
static CREDIT: Condvar = Condvar::new();
static COOKIES: AtomicU64 = AtomicU64::new(1);

fn lock() -> MutexGuard<'static, Option<Waiting>> {
    WAITING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn with<R>(f: impl FnOnce(&mut Waiting) -> R) -> R {
    f(lock().get_or_insert_default())
}

/// A flag that is set when the pending call is cancelled.
pub(crate) fn watch_cancel(token: u64) -> Arc<AtomicBool> {
    with(|waiting| waiting.pending.entry(token).or_default().clone())
}

pub(crate) fn forget(token: u64) {
    with(|waiting| waiting.pending.remove(&token));
}

/// Tries to send again whenever credit came in, until the limit.
pub(crate) fn until_credit(token: u64, limit: Duration, mut send: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let sent = send();
        let now = Instant::now();
        match sent {
            Err(error) if error.code == Code::Busy && now < deadline => {
                // Credit may have come between the two: look again soon in any case.
                let pause = (deadline - now).min(Duration::from_millis(20));
                let guard = lock();
                let cancelled = guard
                    .as_ref()
                    .and_then(|waiting| waiting.pending.get(&token))
                    .is_some_and(|flag| flag.load(Ordering::Relaxed));
                if cancelled {
                    return Err(crate::Error::cancelled("the caller of this stream has gone"));
                }
                drop(CREDIT.wait_timeout(guard, pause));
            }
            other => return other,
        }
    }
}

/// A cookie and the channel in which the items of its stream will arrive. Credit bounds the channel:
/// nobody sends more than was granted, plus the end.
pub(crate) fn expect_stream(instance: ServiceId, credit: u32) -> (u64, Receiver<Item>) {
    // Another generation of the service counts from 1, too: the serial tells them apart.
    let cookie =
        OWN | u64::from(instance.serial()) << 32 | COOKIES.fetch_add(1, Ordering::Relaxed) & 0xffff_ffff;
    let (sender, receiver) = crossbeam_channel::bounded(credit.max(1) as usize + 1);
    with(|waiting| waiting.streams.insert(cookie, sender));
    (cookie, receiver)
}

pub(crate) fn end_stream(cookie: u64, end: Result<()>) {
    if let Some(sender) = with(|waiting| waiting.streams.remove(&cookie)) {
        let _ = sender.try_send(end.map(|()| None));
    }
}

/// True when the stream had not ended yet.
pub(crate) fn forget_stream(cookie: u64) -> bool {
    with(|waiting| waiting.streams.remove(&cookie)).is_some()
}

/// Takes what is the SDK's own. True: the service need not hear of it.
pub(crate) fn take(event: &Event<'_>) -> bool {
    match event.kind {
        EventKind::Item if event.number & OWN != 0 => {
            let sender = with(|waiting| waiting.streams.get(&event.number).cloned());
            sender.is_some_and(|sender| sender.try_send(Ok(Some(event.payload.to_vec()))).is_ok())
        }
        EventKind::Reply if event.number & OWN != 0 => {
            end_stream(event.number, event::result(event).map(drop));
            true
        }
        EventKind::Cancelled => {
            with(|waiting| {
                if let Some(flag) = waiting.pending.get(&event.token) {
                    flag.store(true, Ordering::Relaxed);
                }
            });
            CREDIT.notify_all();
            false
        }
        EventKind::Credit => {
            drop(lock());
            CREDIT.notify_all();
            false
        }
        _ => false,
    }
}
