//! From a file in PLUGIN_PATH to a loaded copy.
//!
//! The drop-in file itself is never opened by the dynamic loader: whoever writes over it while it is
//! mapped would crash the server. It is checked, copied to a private folder under a name that this
//! process never used before, and the copy is opened.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};
use object::{Endianness, Object, elf};
use sha2::{Digest, Sha256};
use zeph_abi::{Declaration, Host, Keys, Library, OpenError, ServiceId};

use crate::copies::{Copies, Kept};
use crate::pins::Pins;

/// A file that is still being written is looked at again so many times.
const TRIES: u32 = 20;
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// Opens libraries for one server.
pub struct Loader {
    /// What is loaded is one of these.
    pub copies: Copies,
    /// What is loaded instead of the dropped-in file.
    pub pins: Pins,
    host: Host,
    serials: AtomicU32,
}

/// A copy that is loaded.
pub struct Loaded {
    /// The library's name.
    pub name: String,
    /// Where it was dropped in.
    pub file: PathBuf,
    /// SHA-256 of its content, in hex.
    pub hash: String,
    /// Which load of this plugin it is.
    pub generation: u32,
    /// What it says of itself.
    pub declaration: Declaration,
    /// The code.
    pub library: Arc<Library>,
    /// The copy that was opened.
    pub copy: PathBuf,
    /// When it was loaded.
    pub at: SystemTime,
}

/// A file that is not loaded, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", file.display())]
pub struct Refusal {
    /// The file.
    pub file: PathBuf,
    /// Its content's hash, where it could be read.
    pub hash: Option<String>,
    /// Why, and what to do.
    pub reason: String,
    /// The same file would be refused again: it is not tried again until it changes.
    pub file_is_bad: bool,
}

/// A file that was read whole and is in order as far as can be seen without running it.
pub struct Checked {
    /// What was read.
    file: PathBuf,
    /// What was dropped in: the same file, or the one that a kept build is loaded in place of.
    pub dropped: PathBuf,
    bytes: Vec<u8>,
    /// SHA-256 in hex.
    pub hash: String,
}

impl Checked {
    /// A kept build, to be loaded in place of what was dropped in.
    pub fn in_place_of(self, dropped: &Path) -> Self {
        Self { dropped: dropped.to_path_buf(), ..self }
    }

    fn refusal(&self, reason: impl Into<String>) -> Refusal {
        Refusal {
            file: self.file.clone(),
            hash: Some(self.hash.clone()),
            reason: reason.into(),
            file_is_bad: true,
        }
    }
}

/// Reads a plugin's file and checks who could have written it, and whether it is complete.
pub fn check(file: &Path) -> Result<Checked, Refusal> {
    let refuse = |reason: String| Refusal { file: file.to_path_buf(), hash: None, reason, file_is_bad: true };
    let mut tries = 0;
    loop {
        let before = owned_by_us(file).map_err(&refuse)?;
        let bytes = fs::read(file).map_err(|error| refuse(format!("cannot be read: {error}")))?;
        let after = owned_by_us(file).map_err(&refuse)?;
        let is_stable = same_version(&before, &after) && bytes.len() as u64 == after.len();
        let complete = is_complete(&bytes);
        tries += 1;
        match complete {
            Ok(()) if is_stable => {
                let hash = hex(&Sha256::digest(&bytes));
                return Ok(Checked { file: file.to_path_buf(), dropped: file.to_path_buf(), bytes, hash });
            }
            // Perhaps somebody is just writing it: look again before saying so.
            _ if tries < TRIES && written_lately(&after) => std::thread::sleep(PAUSE),
            Ok(()) => {
                return Err(refuse("it changes all the time; copy it aside and rename it into place".into()));
            }
            Err(reason) => {
                let hash = Some(hex(&Sha256::digest(&bytes)));
                return Err(Refusal { hash, ..refuse(reason) });
            }
        }
    }
}

/// The same for a build that was kept; it must still be what it was when it was copied.
pub fn check_kept(kept: &Kept) -> Result<Checked, Refusal> {
    let checked = check(&kept.path)?;
    match checked.hash == kept.hash {
        true => Ok(checked),
        false => Err(checked.refusal("its content is not what its name says: it was changed on the disk")),
    }
}

fn written_lately(metadata: &Metadata) -> bool {
    let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    SystemTime::now().duration_since(modified).is_ok_and(|age| age < Duration::from_secs(2))
}

fn same_version(a: &Metadata, b: &Metadata) -> bool {
    (a.ino(), a.len(), a.mtime(), a.mtime_nsec()) == (b.ino(), b.len(), b.mtime(), b.mtime_nsec())
}

/// Nobody but us or root can have written the file, or put another in its place. Its group may: on many
/// systems each user has a group of their own, and whatever a compiler writes is open to that group; who
/// else is in it cannot be seen from here.
pub fn owned_by_us(file: &Path) -> Result<Metadata, String> {
    let metadata = fs::symlink_metadata(file).map_err(|error| format!("cannot be read: {error}"))?;
    if metadata.is_symlink() {
        return Err("it is a symbolic link; copy the library itself here".into());
    }
    if !metadata.is_file() {
        return Err("it is no file".into());
    }
    let folder = file.parent().unwrap_or(Path::new("/"));
    let of_folder = fs::metadata(folder).map_err(|error| format!("its folder cannot be read: {error}"))?;
    let me = fs::metadata("/proc/self").map(|own| own.uid()).map_err(|error| format!("/proc: {error}"))?;
    for (what, path, metadata) in [("it", file, &metadata), ("its folder", folder, &of_folder)] {
        let path = path.display();
        if metadata.uid() != me && metadata.uid() != 0 {
            let owner = metadata.uid();
            return Err(format!(
                "{what} belongs to uid {owner}, not to us (uid {me}) or root: chown {me} {path}"
            ));
        }
        if metadata.mode() & 0o002 != 0 {
            return Err(format!("{what} can be written by others: chmod o-w {path}"));
        }
    }
    Ok(metadata)
}

/// The bytes are a whole dynamic library for this machine.
fn is_complete(bytes: &[u8]) -> Result<(), String> {
    let cut =
        |what: &str| format!("it is not complete: {what} lies beyond its end, at {} bytes", bytes.len());
    if !bytes.starts_with(&elf::ELFMAG) {
        return Err("it is no ELF library".into());
    }
    let header = elf::FileHeader64::<Endianness>::parse(bytes)
        .map_err(|_| "it is no ELF library for a 64-bit machine, or not complete".to_string())?;
    let endian = header.endian().map_err(|_| "it is no ELF library for this machine".to_string())?;
    let machine = if cfg!(target_arch = "aarch64") { elf::EM_AARCH64 } else { elf::EM_X86_64 };
    if header.e_type(endian) != elf::ET_DYN || header.e_machine(endian) != machine {
        return Err("it is an ELF file, but no dynamic library for this machine".into());
    }
    let sections = u64::from(header.e_shnum(endian)) * u64::from(header.e_shentsize(endian));
    if header.e_shoff(endian).saturating_add(sections) > bytes.len() as u64 {
        return Err(cut("its section table"));
    }
    let segments = header.program_headers(endian, bytes).map_err(|_| cut("its segment table"))?;
    for segment in segments {
        if segment.p_offset(endian).saturating_add(segment.p_filesz(endian)) > bytes.len() as u64 {
            return Err(cut("one of its segments"));
        }
    }
    Ok(())
}

/// What a plugin says of itself; else why that cannot be read, with both SDK versions where it tells its.
fn read_declaration(info: &[u8]) -> Result<Declaration, String> {
    serde_json::from_slice(info).map_err(|error| {
        let told: serde_json::Value = serde_json::from_slice(info).unwrap_or_default();
        let sdk = told["sdk"].as_str().unwrap_or("of an unknown version");
        format!(
            "its declaration cannot be read ({error}; built with SDK {sdk}, this server's is {}): build it again with \
             this server's SDK",
            env!("CARGO_PKG_VERSION")
        )
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Says in time that copies come near a limit.
fn warn_of_copies() {
    let zeph_abi::Copies { loaded, warning, limit, held, keys, .. } = zeph_abi::copies();
    static IS_SAID: AtomicBool = AtomicBool::new(false);
    if loaded >= warning && !IS_SAID.swap(true, Ordering::Relaxed) {
        tracing::warn!("{loaded} plugin copies are loaded; at {limit} the next is refused: plan a restart");
    }
    if let Some(Keys { most, in_use, .. }) = keys.filter(|keys| keys.in_use > keys.most / 4 * 3) {
        tracing::warn!(
            "{in_use} of the C library's {most} thread keys are in use, {} old plugin copies are held by their \
             threads (`held` in zephserver status --json): when keys run out, loading is refused",
            held.len()
        );
    }
}

/// The first letters of a hash, for people.
pub fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

impl Loader {
    /// A loader that keeps its copies below `state_path`.
    pub fn new(state_path: &Path, host: Host) -> io::Result<Self> {
        let copies = Copies::open(state_path)?;
        Ok(Self { copies, pins: Pins::read(state_path), host, serials: AtomicU32::new(1) })
    }

    /// Checks what was dropped in, and chooses between it and the build that it was rolled back to.
    pub fn choose(&self, library: &str, file: &Path) -> Result<Checked, Refusal> {
        Ok(self.pins.choose(&self.copies, library, check(file)?))
    }

    /// Loads a checked file as the given generation of its plugin.
    pub fn load(&self, name: &str, checked: &Checked, generation: u32) -> Result<Loaded, Refusal> {
        let copy = self.copy(name, checked, generation)?;
        self.load_copy(name, checked, generation, &copy)
    }

    /// The first half: nothing of the author's runs in it.
    pub fn copy(&self, name: &str, checked: &Checked, generation: u32) -> Result<PathBuf, Refusal> {
        self.copies.write(name, &checked.hash, &checked.bytes, generation).map_err(|error| {
            let folder = self.copies.folder().display();
            let reason =
                format!("cannot be copied to {folder}: {error}; make room there, or check STATE_PATH");
            Refusal { file_is_bad: false, ..checked.refusal(reason) }
        })
    }

    /// The second half. A copy that is refused is removed.
    pub fn load_copy(
        &self,
        name: &str,
        checked: &Checked,
        generation: u32,
        copy: &Path,
    ) -> Result<Loaded, Refusal> {
        self.open(name, checked, generation, copy).inspect_err(|_| self.copies.discard(copy))
    }

    fn open(&self, name: &str, checked: &Checked, generation: u32, copy: &Path) -> Result<Loaded, Refusal> {
        let library = Library::open(copy).map_err(|error| {
            let file_is_bad = !matches!(error, OpenError::TooMany(_));
            Refusal { file_is_bad, ..checked.refusal(error.to_string()) }
        })?;
        if let Some(expected) = ElfFile64::<Endianness>::parse(&*checked.bytes)
            .ok()
            .and_then(|file| file.build_id().ok().flatten().map(<[u8]>::to_vec))
            && library.build_id() != Some(&expected)
        {
            return Err(checked.refusal("old code answers for the new file: their build ids differ"));
        }
        warn_of_copies();
        let id = ServiceId::library(self.serials.fetch_add(1, Ordering::Relaxed));
        library.setup(self.host, id).map_err(|failure| checked.refusal(format!("setup: {failure}")))?;
        let declaration = self.declaration(name, &library, checked)?;
        Ok(Loaded {
            name: name.into(),
            file: checked.dropped.clone(),
            hash: checked.hash.clone(),
            generation,
            declaration,
            library: Arc::new(library),
            copy: copy.to_path_buf(),
            at: SystemTime::now(),
        })
    }

    fn declaration(&self, name: &str, library: &Library, checked: &Checked) -> Result<Declaration, Refusal> {
        let info = library.info().map_err(|failure| checked.refusal(format!("info: {failure}")))?;
        let declaration = read_declaration(&info).map_err(|reason| checked.refusal(reason))?;
        if declaration.plugin != name {
            let other = &declaration.plugin;
            return Err(checked.refusal(format!(
                "it is the plugin `{other}`, under another's name: name the file lib{other}.so"
            )));
        }
        Ok(declaration)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn refused(name: &str, bytes: &[u8], mode: u32) -> String {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(name);
        let mut writer = fs::OpenOptions::new().write(true).create(true).truncate(true).open(&file).unwrap();
        writer.write_all(bytes).unwrap();
        writer.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        check(&file).err().map(|refusal| refusal.to_string()).unwrap_or_default()
    }

    #[test]
    fn what_is_no_whole_library_is_refused() {
        let own = fs::read("/proc/self/exe").unwrap();
        assert_eq!(refused("liba.so", &own, 0o755), "", "a position-independent program is a library, too");
        assert!(refused("liba.so", b"hello", 0o755).contains("no ELF library"));
        assert!(refused("liba.so", &own[..40], 0o755).contains("not complete"));
        assert!(refused("liba.so", &own[..own.len() / 2], 0o755).contains("not complete"));
        assert!(refused("liba.so", &own, 0o757).contains("chmod o-w"));
        assert_eq!(refused("liba.so", &own, 0o775), "", "its group may write it");
    }

    #[test]
    fn a_declaration_that_cannot_be_read_names_both_sdks() {
        let unknown = br#"{"plugin": "a", "version": "1.0.0", "sdk": "9.9.9", "services": 3}"#;
        let reason = read_declaration(unknown).unwrap_err();
        assert!(reason.contains("SDK 9.9.9") && reason.contains(env!("CARGO_PKG_VERSION")), "{reason}");
        assert!(read_declaration(b"{").unwrap_err().contains("of an unknown version"));
        assert_eq!(read_declaration(br#"{"plugin": "a", "version": "1", "sdk": "1"}"#).unwrap().plugin, "a");
    }

    #[test]
    fn a_kept_build_that_was_changed_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("copy.so");
        fs::copy("/proc/self/exe", &path).unwrap();
        let hash = check(&path).unwrap().hash;
        let mut kept = Kept { path, hash, at: SystemTime::now() };
        assert!(check_kept(&kept).is_ok());
        kept.hash = "0".repeat(64);
        assert!(check_kept(&kept).err().unwrap().to_string().contains("was changed"));
    }

    #[test]
    fn a_link_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("libl.so");
        std::os::unix::fs::symlink("/proc/self/exe", &link).unwrap();
        assert!(check(&link).err().unwrap().to_string().contains("symbolic link"));
    }
}
