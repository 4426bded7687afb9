//! Back to a build that was kept: by command, or since the newer one failed soon after it took over. It goes
//! the same road as any reload, with the state, where the older build can import that.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use zeph_contract::{Code, Error};

use super::{Failed, PAUSE, Reloader, said};
use crate::copies::Kept;
use crate::loader::{self, Loaded, short};
use crate::messages::{Direction, Standing};
use crate::pins::Pin;

impl Reloader {
    pub(super) fn rollback(&self, library: &str, build: Option<&str>) -> Result<Value, Error> {
        let start = Instant::now();
        let standing = self.standing(library, None)?;
        let file = self.hash_of_file(library).unwrap_or_default();
        let kept = self.loader.copies.kept(library);
        let refused = standing.refused.as_ref().map_or("", |(hash, _)| hash.as_str());
        let target = choose(&kept, build, &standing.loaded.hash, &[file.as_str(), refused])?;
        let (hash, generation) = (short(&target.hash).to_string(), standing.loaded.generation);
        let back = self.go_back(library, standing, target, start).map_err(|failed| {
            let text = &failed.error.text;
            let text =
                format!("{library}: not rolled back to {hash}, generation {generation} serves on: {text}");
            tracing::error!("{text}");
            let cause = format!("not rolled back to it: {}", failed.error.text);
            self.note_refused(library, Some(&target.hash), &cause);
            self.abort(library, None);
            Error::new(failed.error.code, text)
        })?;
        let noted = match target.hash == file {
            true => self.loader.pins.end(library),
            false => self.loader.pins.set(library, Pin::new(&file, &target.hash)),
        };
        let pinned = self.loader.pins.text(library);
        tracing::warn!("{library}: {}", pinned.as_deref().unwrap_or("it runs with its file again"));
        let back = with(back, "pinned", pinned);
        Ok(match noted {
            Ok(()) => back,
            Err(error) => {
                let text = format!("this is not known after a restart: pins.json in STATE_PATH: {error}");
                with(back, "warning", Some(text))
            }
        })
    }

    /// What was dropped in, be it in order or not.
    fn hash_of_file(&self, library: &str) -> Option<String> {
        let file = self.file_of(library).ok()?;
        loader::check(&file).map_or_else(|refusal| refusal.hash, |checked| Some(checked.hash))
    }

    fn go_back(
        &self,
        library: &str,
        standing: Standing,
        target: &Kept,
        start: Instant,
    ) -> Result<Value, Failed> {
        let old = standing.loaded;
        let checked = loader::check_kept(target).map_err(|refusal| Failed::refused(&refusal))?;
        let checked = checked.in_place_of(&old.file);
        let loaded = Arc::new(self.load(library, checked, standing.newest + 1)?);
        let services = self.exchange(&loaded, standing.subjects, Direction::Back)?;
        Ok(said(&old, &loaded, &services, start))
    }

    /// `from` failed soon after its reload, and the manager makes new instances of `to` again. What still runs
    /// with `from` follows in order, with its state and its peers. Where that cannot be, it stays: nothing of it
    /// failed.
    pub(super) fn follow(&self, from: &Arc<Loaded>, to: &Arc<Loaded>, patience: Duration) {
        let library = &to.name;
        let until = Instant::now() + patience;
        let followed = loop {
            match self.try_to_follow(to) {
                // One of them is just starting or stopping.
                Err(error) if error.code == Code::Busy && Instant::now() < until => std::thread::sleep(PAUSE),
                followed => break followed,
            }
        };
        match followed {
            Ok(None) => return,
            Ok(Some(services)) if services.is_empty() => {}
            Ok(Some(services)) => {
                let services = services.join(", ");
                tracing::info!("{services}: back to generation {} ({})", to.generation, short(&to.hash));
            }
            // The server stops.
            Err(error) if error.code == Code::Unavailable => {}
            Err(error) => tracing::error!(
                "{library}: what did not fail stays with generation {} ({}); zephserver restart NAME brings it back, \
                 without its state: {error}",
                from.generation,
                short(&from.hash)
            ),
        }
        // A restart of the server is not to bring back what failed.
        if let Err(error) = self.loader.copies.renew(library, &to.hash) {
            return tracing::error!("{library}: after a restart its file is loaded again: {error}");
        }
        // What cannot be written was said.
        let _ = self.loader.pins.set(library, Pin::new(&from.hash, &to.hash));
    }

    /// Which services have followed. None: yet another build serves meanwhile.
    fn try_to_follow(&self, to: &Arc<Loaded>) -> Result<Option<Vec<String>>, Error> {
        let standing = self.standing(&to.name, Some(to.generation))?;
        if standing.loaded.generation != to.generation {
            return Ok(None);
        }
        if standing.subjects.is_empty() {
            return Ok(Some(Vec::new()));
        }
        self.exchange(to, standing.subjects, Direction::Follow).map(Some).map_err(|failed| {
            self.abort(&to.name, None);
            failed.error
        })
    }
}

/// Adds a key to an object.
fn with(mut object: Value, key: &str, value: Option<String>) -> Value {
    if let Some(map) = object.as_object_mut() {
        map.insert(key.into(), value.into());
    }
    object
}

/// The build to go back to: the one that is asked for by the first letters of its hash, or the youngest that does
/// not run and was not `left`: refused, or rolled back from.
fn choose<'a>(kept: &'a [Kept], wish: Option<&str>, running: &str, left: &[&str]) -> Result<&'a Kept, Error> {
    let list = || kept.iter().map(|kept| said_of(kept, running)).collect::<Vec<_>>().join(", ");
    let Some(wish) = wish else {
        let other = |kept: &&Kept| kept.hash != running && !left.contains(&kept.hash.as_str());
        return kept.iter().find(other).ok_or_else(|| {
            Error::not_found(format!("no other build that served is kept; name one by its hash: {}", list()))
        });
    };
    let found: Vec<&Kept> = kept.iter().filter(|kept| kept.hash.starts_with(wish)).collect();
    match found.as_slice() {
        [one] if one.hash == running => Err(Error::refused(format!("build {wish} runs already"))),
        [one] => Ok(*one),
        [] => Err(Error::not_found(format!("no build {wish} is kept; there are: {}", list()))),
        _ => Err(Error::invalid(format!("several builds begin with {wish}: {}", list()))),
    }
}

fn said_of(kept: &Kept, running: &str) -> String {
    // A file's time may be anything.
    let at = humantime::format_rfc3339_seconds(kept.at.clamp(SystemTime::UNIX_EPOCH, SystemTime::now()));
    let what = if kept.hash == running { "runs" } else { "loaded" };
    format!("{} ({what}, {at})", short(&kept.hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(hashes: &[&str]) -> Vec<Kept> {
        let kept =
            |hash: &&str| Kept { path: "x".into(), hash: hash.to_string(), at: SystemTime::UNIX_EPOCH };
        hashes.iter().map(kept).collect()
    }

    #[test]
    fn the_youngest_other_build_that_served() {
        let kept = kept(&["cc", "bb", "aa"]);
        let chosen = |running, left: &[&str]| {
            choose(&kept, None, running, left).map(|kept| kept.hash.as_str()).map_err(|error| error.code)
        };
        assert_eq!(chosen("cc", &["cc", ""]), Ok("bb"));
        // Rolled back from cc once already, so that its file is cc: further back.
        assert_eq!(chosen("bb", &["cc", ""]), Ok("aa"));
        assert_eq!(chosen("aa", &["aa", "cc"]), Ok("bb"));
        assert_eq!(chosen("aa", &["bb", "cc"]), Err(Code::NotFound));
    }

    #[test]
    fn one_by_its_first_letters() {
        let kept = kept(&["cc12", "cc34", "aa56"]);
        let chosen = |wish| {
            choose(&kept, Some(wish), "aa56", &["cc12"])
                .map(|kept| kept.hash.as_str())
                .map_err(|error| error.code)
        };
        assert_eq!(chosen("cc1"), Ok("cc12"), "also one that was left, if somebody wants it");
        assert_eq!(chosen("cc"), Err(Code::Invalid));
        assert_eq!(chosen("aa"), Err(Code::Refused));
        assert_eq!(chosen("dd"), Err(Code::NotFound));
        let error = choose(&kept, Some("dd"), "aa56", &[]).unwrap_err();
        assert!(error.text.contains("cc12 (loaded, 1970-01-01T00:00:00Z), cc34"), "{error}");
        assert!(error.text.contains("aa56 (runs"), "{error}");
    }
}
