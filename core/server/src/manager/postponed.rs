//! What happens to a service while a reload holds it: kept until the reload is over.
//!
//! An instance can die but once, and its death may be told by many. So of all that happens to it only what
//! tells the most is kept, beside the wishes of operators; the list stays short.

use crate::supervisor::Event;

/// Events that wait for the end of a reload, in their order.
#[derive(Debug, Default)]
pub struct Postponed(Vec<Event>);

fn is_wish(event: &Event) -> bool {
    matches!(event, Event::Start | Event::Stop)
}

impl Postponed {
    /// Keeps a wish, unless it is the last one once more, and what became of the instance. A call is none of
    /// that: who calls waits at the gate.
    pub fn add(&mut self, event: Event) {
        if event == Event::Called {
            return;
        }
        if is_wish(&event) {
            if self.0.iter().rfind(|known| is_wish(known)) != Some(&event) {
                self.0.push(event);
            }
            return;
        }
        match self.0.iter_mut().find(|known| !is_wish(known)) {
            None => self.0.push(event),
            // After its main returned, an instance may still crash.
            Some(known @ Event::Returned { .. }) => *known = event,
            Some(_) => {}
        }
    }

    /// Forgets what happened to the instance, which was replaced.
    pub fn keep_wishes(&mut self) {
        self.0.retain(is_wish);
    }

    /// The next one, which is kept no longer.
    pub fn take_first(&mut self) -> Option<Event> {
        (!self.0.is_empty()).then(|| self.0.remove(0))
    }

    /// Somebody wants it to stop.
    pub fn has_stop(&self) -> bool {
        self.0.contains(&Event::Stop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(events: &[Event]) -> Vec<Event> {
        let mut postponed = Postponed::default();
        events.iter().for_each(|event| postponed.add(*event));
        std::iter::from_fn(|| postponed.take_first()).collect()
    }

    #[test]
    fn an_instance_dies_once() {
        use Event::{Called, Crashed, Gone, Returned, Start, Stop};
        assert_eq!(kept(&[Crashed, Crashed, Returned { well: false }, Gone]), [Crashed]);
        assert_eq!(kept(&[Returned { well: true }, Crashed]), [Crashed]);
        assert_eq!(kept(&[Called, Crashed, Called, Stop, Stop, Crashed]), [Crashed, Stop]);
        assert_eq!(kept(&[Stop, Crashed, Stop, Start, Start]), [Stop, Crashed, Start]);
        assert!(kept(&[Called; 9]).is_empty());
    }

    #[test]
    fn wishes_outlive_the_instance() {
        let mut postponed = Postponed::default();
        [Event::Crashed, Event::Stop].into_iter().for_each(|event| postponed.add(event));
        postponed.keep_wishes();
        assert!(postponed.has_stop());
        assert_eq!((postponed.take_first(), postponed.take_first()), (Some(Event::Stop), None));
        assert!(!postponed.has_stop());
    }
}
