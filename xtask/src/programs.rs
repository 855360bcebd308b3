//! Running other programs, each under a deadline.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

use anyhow::{Context as _, Result, bail};

/// No single program of a run takes longer: what hangs is ended and counts as failed.
const DEADLINE: Duration = Duration::from_mins(30);
const POLL: Duration = Duration::from_millis(50);

/// The cargo that runs us, so that a chosen toolchain stays chosen.
pub fn cargo(root: &Path) -> Command {
    let program = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    command.current_dir(root);
    command
}

/// The simulator's runner, asked for `chore`; its exit status is ours.
pub fn simulator(root: &Path, chore: &str, arguments: &[String]) -> Result<ExitCode> {
    let mut backend = arguments.iter().skip_while(|word| *word != "--backend").nth(1).map(String::as_str);
    backend = backend.or_else(|| arguments.iter().find_map(|word| word.strip_prefix("--backend=")));
    // These run on all backends side by side, and so need a build that has them.
    let all_here = chore == "nightly" || (backend == Some("all") && ["replay", "swarm"].contains(&chore));
    if backend != Some("all") || all_here {
        return simulator_on(root, chore, arguments, all_here || backend == Some("madsim"));
    }
    for name in ["own", "turmoil", "madsim"] {
        let replaced = arguments.iter().map(|word| match word.as_str() {
            "all" => name.to_owned(),
            "--backend=all" => format!("--backend={name}"),
            other => other.to_owned(),
        });
        println!("on {name}:");
        let ended = simulator_on(root, chore, &replaced.collect::<Vec<_>>(), name == "madsim")?;
        if ended != ExitCode::SUCCESS {
            return Ok(ended);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Measures the simulator; then, in a build that has it, madsim.
pub fn bench_simulator(root: &Path, arguments: &[String]) -> Result<ExitCode> {
    let ended = simulator_on(root, "bench", arguments, false)?;
    let helps = arguments.iter().any(|word| ["-h", "--help", "--without-madsim"].contains(&word.as_str()));
    if ended != ExitCode::SUCCESS || helps {
        return Ok(ended);
    }
    let mut arguments = arguments.to_vec();
    arguments.push("--madsim".into());
    simulator_on(root, "bench", &arguments, true)
}

fn simulator_on(root: &Path, chore: &str, arguments: &[String], madsim: bool) -> Result<ExitCode> {
    let mut command = simulator_command(root, chore);
    if madsim {
        under_madsim(root, &mut command);
    }
    let status = command.args(arguments).status().context("cannot start cargo")?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Has cargo build with `--cfg madsim`, which covers every crate: hence a target folder of its own.
pub fn under_madsim(root: &Path, command: &mut Command) {
    command.env("RUSTFLAGS", "--cfg madsim").env("CARGO_TARGET_DIR", root.join("target-madsim"));
}

/// `cargo run` up to the runner's `chore`; the caller adds the rest.
pub fn simulator_command(root: &Path, chore: &str) -> Command {
    let mut command = cargo(root);
    command.args(["run", "--release", "--package", "sheetanchor-nightly", "--", chore]);
    command
}

/// Runs `command` with its output going where ours goes. An error if it fails or outlives the deadline.
pub fn run(command: &mut Command) -> Result<()> {
    run_within(command, DEADLINE)
}

/// As [`run`], with a deadline of its own.
pub fn run_within(command: &mut Command, deadline: Duration) -> Result<()> {
    echo(command);
    let child = command.spawn().with_context(|| format!("cannot start {}", shown(command)))?;
    let status = wait(child, command, deadline)?;
    judge(command, status)
}

/// As [`run`], and hands each line that the program writes to `each` before passing it on. Both of its streams are
/// passed on to standard output.
pub fn run_reading(command: &mut Command, mut each: impl FnMut(&str)) -> Result<()> {
    echo(command);
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    command.stdout(writer.try_clone().context("cannot share a pipe")?).stderr(writer);
    let child = command.spawn().with_context(|| format!("cannot start {}", shown(command)))?;
    // The command holds our ends of the pipe; while they are open the reader does not see the end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    thread::scope(|scope| {
        let watch = scope.spawn(|| wait(child, command, DEADLINE));
        let mut out = std::io::stdout();
        for line in BufReader::new(reader).split(b'\n') {
            let line = line.context("cannot read what a program writes")?;
            let text = String::from_utf8_lossy(&line);
            each(&text);
            writeln!(out, "{text}").context("cannot write to standard output")?;
        }
        let status = watch.join().map_err(|_| anyhow::anyhow!("the thread that waits for a program panicked"))??;
        judge(command, status)
    })
}

/// What `command` writes to standard output. An error if it fails.
pub fn output(command: &mut Command) -> Result<String> {
    let output =
        command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot start {}", shown(command)))?;
    judge(command, output.status)?;
    String::from_utf8(output.stdout).with_context(|| format!("{} wrote what is not UTF-8", shown(command)))
}

/// Whether `command` can be started and ends well. Its output is not shown.
pub fn succeeds(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// As a person would type it.
pub fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let mut words = vec![program.to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    words.join(" ")
}

fn echo(command: &Command) {
    println!("    $ {}", shown(command));
}

fn wait(mut child: Child, command: &Command, deadline: Duration) -> Result<ExitStatus> {
    let until = Instant::now() + deadline;
    loop {
        if let Some(status) = child.try_wait().with_context(|| format!("cannot wait for {}", shown(command)))? {
            return Ok(status);
        }
        if Instant::now() >= until {
            end_descendants(child.id());
            child.kill().with_context(|| format!("cannot end {}", shown(command)))?;
            child.wait().with_context(|| format!("cannot wait for {}", shown(command)))?;
            bail!("`{}` did not end within {} minutes", shown(command), deadline.as_secs() / 60);
        }
        thread::sleep(POLL);
    }
}

/// Ends what a program has started, and what that has started. A test left behind by cargo would hold our pipe open, and
/// we would wait for it for ever. Best effort: without `ps` the program alone is ended.
fn end_descendants(program: u32) {
    let listed = output(Command::new("ps").args(["-A", "-o", "pid=,ppid="])).unwrap_or_default();
    let descendants = descendants(&listed, program);
    if !descendants.is_empty() {
        let ids = descendants.iter().map(ToString::to_string);
        println!("ending what it started: {descendants:?}");
        succeeds(Command::new("kill").arg("-KILL").args(ids));
    }
}

/// The processes under `program` in lines of `process parent`, each after its parent.
fn descendants(listed: &str, program: u32) -> Vec<u32> {
    let pair = |line: &str| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    };
    let pairs: Vec<(u32, u32)> = listed.lines().filter_map(pair).collect();
    let mut found = vec![program];
    let mut looked_at = 0;
    while let Some(parent) = found.get(looked_at).copied() {
        let children = pairs.iter().filter(|(child, of)| *of == parent && !found.contains(child));
        let children: Vec<u32> = children.map(|(child, _)| *child).collect();
        found.extend(children);
        looked_at += 1;
    }
    found.split_off(1)
}

fn judge(command: &Command, status: ExitStatus) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    bail!("`{}`: {status}", shown(command))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_program_that_fails_is_an_error() {
        assert!(run(&mut shell("exit 0")).is_ok());
        assert!(run(&mut shell("exit 3")).unwrap_err().to_string().contains("exit status: 3"));
        assert!(run_reading(&mut shell("exit 3"), |_| ()).is_err());
        assert!(output(&mut shell("echo x; exit 1")).is_err());
        assert!(run(&mut Command::new("no-such-program-anywhere")).is_err());
        assert!(succeeds(&mut shell("true")) && !succeeds(&mut shell("false")));
    }

    #[test]
    fn both_streams_are_read() {
        let mut lines = Vec::new();
        run_reading(&mut shell("echo out; echo err >&2"), |line| lines.push(line.to_owned())).unwrap();
        assert_eq!(lines, ["out", "err"]);
    }

    #[test]
    fn a_program_that_hangs_is_ended_with_what_it_started() {
        let mut command = shell("sleep 600; true");
        let (mut reader, writer) = std::io::pipe().unwrap();
        let child = command.stdout(writer).spawn().unwrap();
        command.stdout(Stdio::null());
        // The shell needs a moment to start its own child.
        while descendants(&output(Command::new("ps").args(["-A", "-o", "pid=,ppid="])).unwrap(), child.id()).is_empty()
        {
            thread::sleep(POLL);
        }
        let error = wait(child, &command, Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("did not end"), "{error}");
        // This ends only once nobody holds the other end of the pipe.
        assert_eq!(reader.read_to_string(&mut String::new()).unwrap(), 0);
    }

    #[test]
    fn descendants_are_found_at_any_depth() {
        let listed = "  1 0\n 10 1\n 11 10\n 12 11\n 13 1\n 14 10\nx y\n";
        assert_eq!(descendants(listed, 10), [11, 14, 12]);
        assert_eq!(descendants(listed, 13), [0; 0]);
    }
}
