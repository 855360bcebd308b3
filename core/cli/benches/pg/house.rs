//! The folder of a run, and programs that are run in it and timed.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::process::Command;

/// What anything here ends in.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Whom root runs servers and tools as.
pub const ACCOUNT: &str = "postgres";

/// No single program takes longer.
const DEADLINE: Duration = Duration::from_mins(30);

/// What is left free of memory, since the kernel begins to look for more before there is none.
const LEFT_FREE_MIB: u64 = 400;

/// The length of a file that takes no place on the disk.
const ZEROS: u64 = 1 << 42;

/// Clock ticks of a second, in which Linux counts processor time (`USER_HZ`, the same on every architecture of today).
const TICKS: f64 = 100.0;

/// What one run of something took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Took {
    /// Seconds on the clock.
    pub wall: f64,
    /// Seconds of processor, of all processes that did it. PostgreSQL's own are not among them.
    pub cpu: f64,
}

/// A folder with a subfolder for each server, tool and repository.
pub struct House {
    folder: PathBuf,
}

impl House {
    pub fn in_folder(folder: &Path) -> Result<Self> {
        Ok(Self { folder: fs::canonicalize(folder)? })
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// Makes a folder that is new and empty.
    pub fn fresh(&self, name: &str) -> Result<String> {
        let path = self.path(name);
        remove(&path)?;
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
        Ok(path)
    }
}

/// A program with its arguments.
pub fn program(name: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(name);
    command.args(arguments);
    command
}

/// A line for the shell, for tools that are used in pipes.
pub fn shell(line: &str) -> Command {
    program("sh", &["-c", line])
}

/// Runs a program to its end, and answers what it printed. An error holds what it said if it fails.
pub async fn run(command: &mut Command) -> Result<String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let name = command.as_std().get_program().to_string_lossy().into_owned();
    let output = tokio::time::timeout(DEADLINE, command.output())
        .await
        .map_err(|_| format!("{name} did not end within {} minutes", DEADLINE.as_secs() / 60))?
        .map_err(|error| format!("cannot start {name}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = command.as_std().get_args().map(|word| word.to_string_lossy().into_owned());
    let line = std::iter::once(name).chain(words).collect::<Vec<_>>().join(" ");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Err(format!("{line}: {}\n{out}{err}", output.status).into())
}

/// Runs a program, then syncs everything in `left`, and answers what both took.
pub async fn timed(command: &mut Command, left: &str) -> Result<Took> {
    let (begun, cpu) = (Instant::now(), cpu_of_children()?);
    run(command).await?;
    sync_tree(Path::new(left))?;
    Ok(Took { wall: begun.elapsed().as_secs_f64(), cpu: cpu_of_children()? - cpu })
}

/// Seconds of processor of all children that have ended, and theirs.
pub fn cpu_of_children() -> Result<f64> {
    cpu(Path::new("/proc/self/stat"), 15, 16)
}

/// Seconds of processor of a process that runs, with its threads.
pub fn cpu_of(pid: u32) -> Result<f64> {
    cpu(&PathBuf::from(format!("/proc/{pid}/stat")), 13, 14)
}

fn cpu(file: &Path, user: usize, system: usize) -> Result<f64> {
    let text = fs::read_to_string(file)?;
    // The name is in brackets, and may hold blanks: the third field is the first after it.
    let rest = text.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let fields: Vec<&str> = rest.split(' ').collect();
    let field = |at: usize| fields.get(at - 2).and_then(|text| text.parse::<f64>().ok()).ok_or("no processor time");
    Ok((field(user)? + field(system)?) / TICKS)
}

/// The most memory that a process has used so far, in MiB.
pub fn peak_mib(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    let kib: f64 = line.split_whitespace().next().ok_or("no VmHWM")?.parse()?;
    Ok(kib / 1024.0)
}

/// Makes every file and folder durable.
pub fn sync_tree(root: &Path) -> Result<()> {
    let found = fs::symlink_metadata(root)?;
    if found.is_dir() {
        for entry in fs::read_dir(root)? {
            sync_tree(&entry?.path())?;
        }
    }
    if found.is_dir() || found.is_file() {
        File::open(root)?.sync_all()?;
    }
    Ok(())
}

/// Bytes in all files of a folder.
pub fn bytes_in(root: &Path) -> Result<u64> {
    let found = fs::symlink_metadata(root)?;
    let mut bytes = if found.is_file() { found.len() } else { 0 };
    if found.is_dir() {
        for entry in fs::read_dir(root)? {
            bytes += bytes_in(&entry?.path())?;
        }
    }
    Ok(bytes)
}

/// Removes a folder, if it is there.
pub fn remove(path: &str) -> Result<()> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(format!("cannot remove {path}: {error}").into()),
    }
}

/// What the rounds before have left goes to the disk now, and not on somebody's time. Nor does anybody pay for memory that
/// a virtual machine has given back, and is given again page by page: free memory is filled with a file's zeros.
pub async fn settle() -> Result<()> {
    run(&mut program("sync", &[])).await?;
    tokio::task::spawn_blocking(touch_memory).await?
}

/// Reads a file without blocks, in the folder of the run, where nobody has read it yet, until little memory is free.
fn touch_memory() -> Result<()> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let file = File::options().read(true).write(true).create(true).truncate(false).open("zeros")?;
    file.set_len(ZEROS)?;
    let mut piece = vec![0; 1 << 20];
    for _ in 0..free_mib()?.saturating_sub(LEFT_FREE_MIB) {
        file.read_exact_at(&mut piece, NEXT.fetch_add(1 << 20, Ordering::Relaxed) % ZEROS)?;
    }
    Ok(())
}

/// Memory that holds nothing, not even a file's pages.
fn free_mib() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let found = text.lines().find_map(|line| line.strip_prefix("MemFree:")?.trim().strip_suffix(" kB")?.parse().ok());
    Ok(found.map(|kib: u64| kib >> 10).ok_or("/proc/meminfo does not say what is free")?)
}

/// Has the files of a folder in the page cache. Those of a server that runs may go meanwhile.
pub async fn read_all(folder: &str) -> Result<()> {
    run(&mut shell(&format!("find {folder} -type f -exec cat {{}} + > /dev/null 2>&1 || true"))).await.map(drop)
}

/// A loopback address that nobody listens on.
pub fn free_address() -> Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

/// The number of the account, or of its group.
pub async fn number_of(which: &str) -> Result<u32> {
    Ok(run(&mut program("id", &[which, ACCOUNT])).await?.trim().parse()?)
}

/// Waits until `look` answers true.
pub async fn until(what: &str, mut look: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !look().await? {
        if begun.elapsed() > DEADLINE {
            return Err(format!("{what}: not within {} minutes", DEADLINE.as_secs() / 60).into());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}
