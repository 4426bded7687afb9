//! One connection to the broker after another: see the head of [`super`].

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_nats::jetstream::stream::{Info, Stream};
use async_nats::{Client, Event, Message, jetstream};
use futures_util::StreamExt;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::members::Whose;
use super::place::{self, Place};
use super::publish::publish;
use super::read::{lose, read};
use super::trouble::Trouble;
use super::wire::{self, Beat, LEAST_MAX_PAYLOAD};
use super::{CONNECT_DEADLINE, LONGEST_PAUSE, SAID_AGAIN, SHORTEST_PAUSE, STEADY, Shared};

/// For ever, to the library: the next connection is not its business.
const NEVER: Duration = Duration::from_secs(24 * 60 * 60);
/// Signs of life that are taken at a time.
const BEATS: usize = 64;

enum End {
    Stopped,
    Trouble(Trouble),
}

/// Where a node stands, from one connection to the next.
#[derive(Default)]
struct Course {
    place: Option<Place>,
    pause: Duration,
    connected: Option<Instant>,
    /// The trouble that was told last, and when.
    told: Option<(String, Instant)>,
    /// Nothing is told of a connection that ended, again and again, as the one before.
    is_quiet: bool,
    has_compared: bool,
}

/// Until it is stopped. On a thread of its own.
pub fn run(shared: &Shared, stopped: watch::Receiver<bool>) {
    let mut course = Course::default();
    loop {
        let end = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => {
                let end = runtime.block_on(session(shared, &mut course, stopped.clone()));
                // With all that the library has going on it. A look-up of a name ends by itself.
                runtime.shutdown_background();
                end
            }
            Err(error) => {
                std::thread::sleep(SHORTEST_PAUSE);
                End::Trouble(Trouble::Runtime(error))
            }
        };
        match end {
            End::Trouble(trouble) if !*stopped.borrow() => course.tell(shared, &trouble),
            _ => return,
        }
    }
}

impl Course {
    fn tell(&mut self, shared: &Shared, trouble: &Trouble) {
        let connected = self.connected.take();
        if connected.is_some_and(|connected| connected.elapsed() >= STEADY) {
            (self.pause, self.told) = (Duration::ZERO, None);
        }
        self.pause = (self.pause * 2).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        let (text, now) = (trouble.to_string(), Instant::now());
        let is_known = |(told, at): &(String, Instant)| *told == text && now.duration_since(*at) < SAID_AGAIN;
        let is_known = self.told.as_ref().is_some_and(is_known);
        self.is_quiet = is_known && connected.is_some();
        if !is_known {
            let address = &shared.broker.address;
            tracing::warn!("NATS broker {address}: {text}. Events wait here, and it is tried again");
            self.told = Some((text, now));
        }
    }

    fn tell_connected(&mut self, shared: &Shared, client: &Client) {
        self.connected = Some(Instant::now());
        if !self.is_quiet {
            let version = client.server_info().version;
            tracing::info!("NATS broker {}: connected, version {version}", shared.broker.address);
        }
    }
}

async fn session(shared: &Shared, course: &mut Course, mut stopped: watch::Receiver<bool>) -> End {
    tokio::select! {
        biased;
        // An error says that the engine is gone, which is the same.
        _ = stopped.wait_for(|stopped| *stopped) => End::Stopped,
        never = watch_silence(shared) => match never {},
        trouble = connection(shared, course) => End::Trouble(trouble),
    }
}

/// Finds out who is gone, also while the broker is.
async fn watch_silence(shared: &Shared) -> Infallible {
    let mut tick = interval(shared.profile.beat() / 2);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        shared.with_members(|members, news| members.silence(Instant::now(), news));
    }
}

async fn connection(shared: &Shared, course: &mut Course) -> Trouble {
    sleep(course.pause).await;
    let (client, lost) = match connect(shared).await {
        Ok(connected) => connected,
        Err(trouble) => return trouble,
    };
    let stream = match stream(shared, course, &client).await {
        Ok(stream) => stream,
        Err(trouble) => return trouble,
    };
    course.tell_connected(shared, &client);
    shared.members().wait_anew(Instant::now());
    // The place is known from here on. Only now others hear of this node, so that nothing that they say then
    // passes it by.
    let place = course.place.get_or_insert_with(|| Place::at_end(stream.cached_info()));
    tokio::select! {
        trouble = lost => trouble,
        trouble = publish(shared, &client) => trouble,
        trouble = read(shared, place, &stream) => trouble,
        trouble = live(shared, &client) => trouble,
    }
}

/// Connects once. What comes with the client ends when the connection does.
async fn connect(shared: &Shared) -> Result<(Client, impl Future<Output = Trouble> + use<>), Trouble> {
    let broker = &shared.broker;
    let (tell, mut told) = mpsc::channel(1);
    let address = broker.address.clone();
    let on_event = move |event: Event| {
        match event {
            // As a lack of rights.
            Event::ServerError(error) => tracing::warn!("NATS broker {address}: it says: {error}"),
            Event::Disconnected | Event::Closed => drop(tell.try_send(())),
            _ => {}
        }
        std::future::ready(())
    };
    let is_connected = Arc::new(AtomicBool::new(false));
    let is_over = is_connected.clone();
    let pause = move |_| if is_over.load(Ordering::Relaxed) { NEVER } else { Duration::ZERO };
    let options = broker.options().map_err(Trouble::Credentials)?;
    let options = options.name(&shared.node).event_callback(on_event).reconnect_delay_callback(pause);
    // Each of its servers may take its time.
    let limit = CONNECT_DEADLINE * u32::try_from(broker.servers().len()).unwrap_or(1);
    let client = match timeout(limit, options.connect(broker.servers())).await {
        Ok(Ok(client)) => client,
        Ok(Err(error)) => return Err(Trouble::Unreachable(error.to_string())),
        Err(_) => return Err(Trouble::Unreachable(format!("no answer in {} s", limit.as_secs()))),
    };
    is_connected.store(true, Ordering::Relaxed);
    if client.max_payload() < LEAST_MAX_PAYLOAD {
        return Err(Trouble::MaxPayload(client.max_payload()));
    }
    let lost = async move {
        told.recv().await;
        Trouble::Lost
    };
    Ok((client, lost))
}

/// Finds the stream, and whether it is the one that was read.
async fn stream(shared: &Shared, course: &mut Course, client: &Client) -> Result<Stream<Info>, Trouble> {
    let broker = &shared.broker;
    let stream = place::stream(&jetstream::new(client.clone()), broker).await?;
    let info = stream.cached_info();
    let differences = place::differences(&info.config, broker);
    if !std::mem::replace(&mut course.has_compared, true) && !differences.is_empty() {
        tracing::warn!("NATS broker {}: stream {}: {differences}", broker.address, broker.stream);
    }
    if let Some(place) = &mut course.place
        && !place.is_in(info)
    {
        shared.with_members(|members, _| lose(shared, place, members));
    }
    Ok(stream)
}

/// Gives signs of life, and hears those of others.
async fn live(shared: &Shared, client: &Client) -> Trouble {
    let alive = &shared.broker.alive;
    let Ok(beats) = client.subscribe(alive.clone()).await else { return Trouble::Lost };
    let mut beats = beats.ready_chunks(BEATS);
    let mut tick = interval(shared.profile.beat());
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    loop {
        tokio::select! {
            messages = beats.next() => {
                let Some(messages) = messages else { return Trouble::Lost };
                for message in messages {
                    hear(shared, &message, &mut heard);
                }
            }
            _ = tick.tick() => {
                if heard.elapsed() > shared.profile.silence() {
                    return Trouble::Deaf(alive.clone());
                }
                let stored = shared.log.first().saturating_sub(1);
                let beat = wire::encode_beat(&Beat { node: &shared.node, boot: shared.boot, stored });
                if client.publish(alive.clone(), beat).await.is_err() {
                    return Trouble::Lost;
                }
                shared.with_members(|members, news| members.give_up(Instant::now(), news));
            }
        }
    }
}

fn hear(shared: &Shared, message: &Message, heard: &mut Instant) {
    let now = Instant::now();
    shared.with_members(|members, news| match wire::decode_beat(&message.payload) {
        None => members.refuse(),
        Some(beat) => {
            if members.beat(now, &beat, news) == Whose::Mine {
                *heard = now;
            }
        }
    });
}
