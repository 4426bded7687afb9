//! Prints the log. It reads the files themselves, so that it does so without a server, too.

use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Parser;
use signal_hook::consts::SIGINT;
use signal_hook::flag::register_conditional_shutdown;
use zephserver::{Settings, exit};

use crate::log_files::{Line, Log};
use crate::show;

/// Whoever follows looks for new lines this often.
const POLL: Duration = Duration::from_millis(200);

/// Print the last lines of the log, rotated files included.
#[derive(Parser)]
#[command(name = "zephserver logs")]
struct Words {
    /// Go on with new lines, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// Begin with so many lines
    #[arg(short = 'n', long, value_name = "LINES", default_value_t = 100)]
    lines: usize,
    /// Only lines of this service (room/Room), or of this library and its services (room)
    name: Option<String>,
}

/// Does what the words after `logs` say. Answers the exit code.
pub fn print(settings: &Settings, words: &[String]) -> u8 {
    let words = std::iter::once("zephserver logs").chain(words.iter().map(String::as_str));
    let words = match Words::try_parse_from(words) {
        Ok(words) => words,
        Err(error) => {
            let _ = error.print();
            return u8::try_from(error.exit_code()).unwrap_or(exit::USAGE);
        }
    };
    let Some(path) = &settings.log_path else {
        let file = settings.file.display();
        show::error(&format!("there is no log file: LOG_PATH is \"\" in {file}, so it goes to stderr"));
        return exit::NOT_FOUND;
    };
    match show(path, words) {
        Ok(true) => exit::OK,
        Ok(false) => {
            show::error(&format!("there is no log file {}; zephserver-start begins it", path.display()));
            exit::NOT_FOUND
        }
        // Whoever closed the pipe wants no more.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => exit::OK,
        Err(error) => {
            show::error(&format!("the log {}: {error}", path.display()));
            exit::FAILED
        }
    }
}

/// False: there is no log.
fn show(path: &Path, words: Words) -> io::Result<bool> {
    let Some((log, mut last)) = Log::open(path, words.name, words.lines)? else { return Ok(false) };
    if words.follow {
        // Ctrl-C is the way to end it, and no failure; also where the reader of the pipe has stopped reading.
        register_conditional_shutdown(SIGINT, exit::OK.into(), Arc::new(AtomicBool::new(true)))?;
        follow(log, last.make_contiguous())?;
    } else {
        last.extend(log.rest());
        let too_many = last.len().saturating_sub(words.lines);
        write_lines(&mut BufWriter::new(io::stdout()), &last.make_contiguous()[too_many..])?;
    }
    Ok(true)
}

fn write_lines(out: &mut impl Write, lines: &[Line]) -> io::Result<()> {
    lines.iter().try_for_each(|line| out.write_all(line))?;
    out.flush()
}

fn follow(mut log: Log, last: &[Line]) -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout());
    write_lines(&mut out, last)?;
    loop {
        while let Some(line) = log.next_line()? {
            out.write_all(&line)?;
        }
        out.flush()?;
        std::thread::sleep(POLL);
    }
}
