//! Opening a library: once, under a path that no other copy ever had, and never closed again.

use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use abi_stable::library::{AbiHeaderRef, LibraryError};
use libloading::os::unix::{Library as Dl, RTLD_LOCAL, RTLD_NOW};

use crate::copies::{self, Account, Full};
use crate::host_table::Host;
use crate::instance::Instance;
use crate::root_table::RootV1Ref;
use crate::truth;
use crate::types::{Failure, ServiceId, Sink, status};

/// A loaded copy of a plugin. It stays mapped until the process ends: threads and thread-local
/// destructors of a Rust library outlive its `dlclose`. Who drops it says that no instance of it is left and
/// that nobody calls it any more: see [`copies`](crate::copies()).
pub struct Library {
    root: RootV1Ref,
    code_address: usize,
    build_id: Option<Vec<u8>>,
    _account: Account,
}

/// Why a library cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The dynamic loader refused it.
    #[error("the loader refuses it: {0}")]
    Loader(String),
    /// It is a library, but no plugin.
    #[error("it is no zephserver plugin, or its crate lacks `export!`: {0}")]
    NoPlugin(String),
    /// It was built against another ABI.
    #[error("{0}")]
    Incompatible(String),
    /// The code that answered is not the code of the file that was opened.
    #[error(
        "old code answers for the new file: {opened} was opened, but the code comes from {answered}; nothing was changed",
        opened = .opened.display(), answered = .answered.display()
    )]
    OldCode {
        /// The file that was to be opened.
        opened: PathBuf,
        /// The file whose code answered.
        answered: PathBuf,
    },
    /// The process has no room for further copies.
    #[error(transparent)]
    TooMany(#[from] Full),
}

impl Library {
    /// Opens the file at `path`, which must be a private copy that nobody will ever change, under a
    /// name that this process never opened before.
    ///
    /// Checks the header, the layout of the table, and that the code really came from this file.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        copies::admit()?;
        // SAFETY: running a library's constructors is what loading a plugin means; the caller checked
        // its owner and its completeness.
        let library = unsafe { Dl::open(Some(path), RTLD_NOW | RTLD_LOCAL) }
            .map_err(|error| OpenError::Loader(cause(&error)))?;
        copies::count();
        // Once it is mapped it stays mapped, whatever comes: see the type.
        let library = ManuallyDrop::new(library);
        // SAFETY: only the address is taken.
        let symbol = unsafe { library.get::<*const c_void>(crate::ROOT_SYMBOL.to_bytes_with_nul()) }
            .map_err(|error| OpenError::NoPlugin(cause(&error)))?
            .into_raw();
        let (base, code_address) = (answered_by(path, symbol)?, symbol as usize);
        let image = truth::image(base).unwrap_or_else(|| truth::Image::at(base));
        let account = Account::open(path, base..image.end, image.segments);
        // SAFETY: the symbol is a `LibHeader`, which begins with an `AbiHeader` whose magic is checked next.
        let header: AbiHeaderRef = unsafe { std::mem::transmute::<*mut c_void, AbiHeaderRef>(symbol) };
        let root = header
            .upgrade()
            .and_then(|header| header.init_root_module::<RootV1Ref>())
            .map_err(|error| OpenError::Incompatible(one_line(&error)))?;
        answered_by(path, root.create() as *const c_void)?;
        Ok(Self { root, code_address, build_id: image.build_id, _account: account })
    }

    /// Prepares the copy: panic hook, logging. Once, before anything else.
    pub fn setup(&self, host: Host, id: ServiceId) -> Result<(), Failure> {
        self.ask(|sink| self.root.setup()(host, id.0, sink)).map(drop)
    }

    /// What the plugin says of itself, as JSON.
    pub fn info(&self) -> Result<Vec<u8>, Failure> {
        self.ask(|sink| self.root.info()(sink))
    }

    /// Makes an instance of one of its kinds of service.
    pub fn create(
        &self,
        id: ServiceId,
        kind: &str,
        name: &str,
        settings: &[u8],
    ) -> Result<Instance, Failure> {
        Instance::create(self.root, id, kind, name, settings)
    }

    /// Where its code lies: another number for each loaded copy.
    pub fn code_address(&self) -> usize {
        self.code_address
    }

    /// The GNU build id of the code in memory, if it has one.
    pub fn build_id(&self) -> Option<&[u8]> {
        self.build_id.as_deref()
    }

    fn ask(&self, f: impl FnOnce(Sink) -> crate::Outcome) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        match Sink::into_vec(&mut bytes, f).status {
            status::DONE => Ok(bytes),
            status => Err(Failure::new(status, String::from_utf8_lossy(&bytes))),
        }
    }
}

/// What the C library says: the error itself only names the function.
fn cause(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// Where the library of `address` begins in memory, if it is the file at `path`.
fn answered_by(path: &Path, address: *const c_void) -> Result<usize, OpenError> {
    match truth::origin(address) {
        Some((answered, base)) if answered == path => Ok(base),
        other => Err(OpenError::OldCode {
            opened: path.to_path_buf(),
            answered: other.map_or_else(|| PathBuf::from("(unknown)"), |(path, _)| path),
        }),
    }
}

/// `abi_stable` prints both layouts in full before it comes to the point.
fn one_line(error: &LibraryError) -> String {
    match error {
        LibraryError::IncompatibleVersionNumber { expected_version, actual_version, .. } => format!(
            "it was built for version {actual_version} of the plugin ABI, and this server has {expected_version}: \
             build it again with this server's SDK"
        ),
        LibraryError::InvalidAbiHeader(_) => {
            "its header is not one of this ABI (another abi_stable): build it again with this server's SDK".into()
        }
        LibraryError::AbiInstability(_) => {
            "the layout of its function table differs from this server's: build it again with this server's SDK".into()
        }
        other => other.to_string().lines().last().unwrap_or("unknown error of the ABI check").into(),
    }
}
