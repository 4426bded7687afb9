//! What the supervisor wants done. Each action is a few steps, and none waits.

use std::sync::atomic::Ordering;

use zeph_abi::{ServiceId, StopReason};
use zeph_contract::Error;
use zeph_contract::event::Change;

use super::Manager;
use super::container::{Life, Retired};
use crate::history::What;
use crate::life;
use crate::messages::from_life;
use crate::registry::Down;
use crate::supervisor::{Action, Event};

impl Manager {
    pub(super) fn perform(&mut self, slot: u32, action: Action) {
        match action {
            Action::Launch => self.launch(slot),
            Action::RunAgain => {
                self.with(slot, |container| {
                    container.restarts += 1;
                    container.main_runs(true);
                    container.record(What::Ready, Some("its main runs again, in the same instance"));
                });
                self.order(slot, life::Order::Again);
                self.reopen(slot);
            }
            Action::Serve => self.serve(slot),
            Action::Discard => self.discard(slot, StopReason::Failed),
            Action::AskStop => self.ask_stop(slot, StopReason::Disabled),
            Action::LeaveBehind => self.leave_behind(slot),
            Action::Wake(at) => {
                self.with(slot, |container| container.wake = Some(at));
            }
        }
    }

    pub(super) fn order(&mut self, slot: u32, order: life::Order) {
        let life = self.containers.get_mut(&slot).and_then(|container| container.life.as_mut());
        let Some(life) = life else { return };
        if matches!(order, life::Order::End(_)) {
            // The thread is to be the last owner: what an author does in `drop` must not hold us up.
            life.instance = None;
        }
        if life.orders.try_send(order).is_err() {
            tracing::error!("{}: its thread takes no orders", self.bus.registry.name(slot));
        }
    }

    pub(super) fn launch(&mut self, slot: u32) {
        let Some(container) = self.containers.get_mut(&slot) else { return };
        if container.failure_count > 0 {
            container.restarts += 1;
        }
        let loaded = match self.plugins.get(&container.path.library) {
            Some(plugin) => plugin.loaded.clone(),
            None => return container.fail(What::Failed, "its library is not open".into()),
        };
        let Some(place) = self.bus.registry.slot(u64::from(slot)) else { return };
        place.set_down(Down::Coming);
        let id = ServiceId::instance(slot, place.next_serial());
        match life::begin(container.birth(&loaded, id), from_life(self.sender.clone(), id)) {
            Ok(orders) => {
                container.replace_life(Life::new(id, &loaded, orders));
                let again = (container.failure_count > 0).then_some("it failed before");
                container.record(What::Started, container.start_reason.as_deref().or(again));
            }
            Err(error) => {
                // The start's time limit tries again.
                container.fail(What::Failed, format!("no thread for it: {error}"));
            }
        }
    }

    pub(super) fn serve(&mut self, slot: u32) {
        let Some(place) = self.bus.registry.slot(u64::from(slot)) else { return };
        let Some(container) = self.containers.get_mut(&slot) else { return };
        let Some(life) = container.life.as_mut() else { return };
        let Some(instance) = life.instance.clone() else { return };
        let serial = life.id.serial();
        let seat = place.gate.seat(instance, serial);
        life.seat = Some(seat);
        self.bus.subscriptions.keep_only(slot, serial);
        self.bus.clock.keep_only(slot, serial);
        place.generation.store(life.generation, Ordering::Relaxed);
        place.instance.store(serial, Ordering::Relaxed);
        place.gate.admit(seat);
        self.bus.tell_serving(slot);
        let (name, generation) = (&place.name, life.generation);
        tracing::info!("{name}: ready (generation {generation}, {})", life.hash);
        container.record(What::Ready, None);
        self.tell_change(slot, Change::Ready);
    }

    /// Lets callers in again after `main` had returned.
    pub(super) fn reopen(&mut self, slot: u32) {
        let Some(place) = self.bus.registry.slot(u64::from(slot)) else { return };
        let seat = self.containers.get(&slot).and_then(|container| container.life.as_ref()?.seat);
        if let Some(seat) = seat {
            // Should it close again, that is not the rest that is over now.
            place.set_down(Down::Coming);
            place.gate.admit(seat);
            self.bus.tell_serving(slot);
        }
    }

    /// Lets nobody in, and lets the instance end by itself.
    pub(super) fn discard(&mut self, slot: u32, reason: StopReason) {
        let Some(container) = self.containers.get_mut(&slot) else { return };
        container.close();
        let limit = container.settings.options.stop_timeout;
        let Some(life) = container.life.take() else { return };
        let name = self.bus.registry.name(slot).to_string();
        self.forget_dealings(slot, life.id);
        self.mark_stopping(life.id);
        let id = life.id;
        let mut retired = Retired::new(life, limit);
        retired.stop(&name, reason);
        self.retired.insert(id, retired);
    }

    /// Ends what an instance that is gone had under way: calls to it, calls by it, timers, subscriptions.
    pub(super) fn forget_dealings(&self, slot: u32, id: ServiceId) {
        let text = format!("{} ended before it answered; the log says why", self.bus.registry.name(slot));
        self.bus.fail_calls_of(id, &Error::unavailable(text));
        self.bus.cancel_calls_by(slot, 0);
        self.bus.clock.forget(slot, 0);
        self.bus.subscriptions.forget(slot, 0);
        self.bus.registry.slot(u64::from(slot)).inspect(|slot| slot.mailbox.forget_dealings());
    }

    pub(super) fn mark_stopping(&self, id: ServiceId) {
        let slot = id.slot().and_then(|slot| self.bus.registry.slot(u64::from(slot)));
        if let Some(slot) = slot {
            slot.stopping.fetch_max(id.serial(), Ordering::Relaxed);
        }
    }

    pub(super) fn ask_stop(&mut self, slot: u32, reason: StopReason) {
        let Some(container) = self.containers.get_mut(&slot) else { return };
        container.close();
        let name = self.bus.registry.name(slot).to_string();
        let Some(life) = container.life.as_mut() else {
            return self.step(slot, Event::Gone);
        };
        let id = life.id;
        if life.main_runs {
            life.stop(&name, reason);
        } else if life.instance.is_some() && life.seat.is_some() {
            // Its main had returned already: it waits for an order.
            let seat = life.seat;
            self.order(slot, life::Order::End(seat));
        }
        self.mark_stopping(id);
    }

    pub(super) fn leave_behind(&mut self, slot: u32) {
        let Some(container) = self.containers.get_mut(&slot) else { return };
        container.close();
        let stop_timeout = container.settings.options.stop_timeout;
        let limit = stop_timeout.as_secs_f64();
        if let Some(life) = container.life.take() {
            let name = self.bus.registry.name(slot).to_string();
            tracing::error!(
                "{name}: did not stop within {limit} s (stop_timeout); its thread is left behind"
            );
            container.fail(What::LeftBehind, format!("did not stop within {limit} s; left behind"));
            let id = life.id;
            self.forget_dealings(slot, id);
            self.left.insert(id, name);
            let mut retired = Retired::new(life, stop_timeout);
            retired.give_up();
            self.retired.insert(id, retired);
        }
    }
}
