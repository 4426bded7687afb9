//! Where the seeds are. Each name is looked up again and again by a task of its own: one that hangs holds up no
//! other, and has one question under way, not one more each time. What was found holds until it is found anew.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::hub::lock;

/// An answer that takes longer is worth a line in the log.
const ANSWER: Duration = Duration::from_secs(5);

/// Looks names up with `ask`, each again `every` so often, and gives `tell` the addresses of all of them whenever
/// one was looked up. Does not end while there are names.
pub async fn follow<F>(
    names: Vec<String>,
    every: Duration,
    ask: impl Fn(String) -> F + Clone + Send + 'static,
    tell: impl Fn(Vec<SocketAddr>) + Clone + Send + 'static,
) where
    F: Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'static,
{
    let found = Arc::new(Mutex::new(vec![Vec::new(); names.len()]));
    let mut tasks = JoinSet::new();
    for (number, name) in names.into_iter().enumerate() {
        let (found, ask, tell) = (found.clone(), ask.clone(), tell.clone());
        tasks.spawn(async move {
            let mut is_in_trouble = false;
            loop {
                if let Some(addresses) = look_up(&name, ask(name.clone()), &mut is_in_trouble).await {
                    // Told under the lock: so what is told last is what was found last.
                    let mut found = lock(&found);
                    found[number] = addresses;
                    tell(found.concat());
                }
                sleep(every).await;
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

/// Waits for an answer, however long it takes: it cannot be called off. Says once what is wrong, until it is right.
async fn look_up<F>(name: &str, asked: F, is_in_trouble: &mut bool) -> Option<Vec<SocketAddr>>
where
    F: Future<Output = io::Result<Vec<SocketAddr>>>,
{
    let mut complain = |why: &str| {
        if !std::mem::replace(is_in_trouble, true) {
            tracing::warn!(
                "cluster: the seed {name} cannot be looked up: {why}; it is tried again, and what was known of it \
                 holds. Other seeds do not wait for it"
            );
        }
    };
    tokio::pin!(asked);
    let (answer, is_prompt) = match timeout(ANSWER, &mut asked).await {
        Ok(answer) => (answer, true),
        Err(_) => {
            complain(&format!("no answer in {} s", ANSWER.as_secs()));
            (asked.await, false)
        }
    };
    match answer {
        Ok(addresses) => {
            *is_in_trouble &= !is_prompt;
            Some(addresses)
        }
        Err(error) => {
            complain(&error.to_string());
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    const SOON: Duration = Duration::from_secs(4);

    fn told<F>(
        names: &[&str],
        ask: impl Fn(String) -> F + Clone + Send + 'static,
    ) -> (Receiver<Vec<SocketAddr>>, tokio::runtime::Runtime)
    where
        F: Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'static,
    {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap();
        let (sender, told) = channel();
        let names = names.iter().map(|name| String::from(*name)).collect();
        let tell = move |addresses| sender.send(addresses).unwrap_or_default();
        runtime.spawn(follow(names, Duration::from_millis(1), ask, tell));
        (told, runtime)
    }

    fn address(port: u16) -> SocketAddr {
        ([10, 0, 0, 1], port).into()
    }

    #[test]
    fn a_name_that_hangs_holds_up_no_other() {
        let (told, _runtime) = told(&["hangs", "is there"], |name| async move {
            if name == "hangs" {
                std::future::pending::<()>().await;
            }
            Ok(vec![address(1)])
        });
        assert_eq!(told.recv_timeout(SOON), Ok(vec![address(1)]));
    }

    #[test]
    fn what_was_found_holds_while_nothing_is_found() {
        let was_found = Arc::new(AtomicBool::new(false));
        let (told, _runtime) = told(&["once", "always"], move |name| {
            let fails = name == "once" && was_found.swap(true, Ordering::Relaxed);
            async move {
                match name.as_str() {
                    "once" if fails => Err(io::ErrorKind::TimedOut.into()),
                    "once" => Ok(vec![address(1)]),
                    _ => Ok(vec![address(2)]),
                }
            }
        });
        let both = vec![address(1), address(2)];
        while told.recv_timeout(SOON).unwrap() != both {}
        for _ in 0..20 {
            assert_eq!(told.recv_timeout(SOON).as_ref(), Ok(&both));
        }
    }
}
