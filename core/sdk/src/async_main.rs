//! A tokio runtime of the plugin's own. Nothing of it crosses the boundary.

use std::future::Future;

use crate::{Result, Stop};

/// Runs async code inside `Service::main`, on this thread, until it is done or the service is to stop.
pub fn async_main(stop: &Stop, future: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            done = future => done,
            () = stop.stopped() => Ok(()),
        }
    })
}
