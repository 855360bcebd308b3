//! What a run that was killed has left: its folders, and the file systems that are mounted in them. (Its hosts' network is gone
//! with its processes.)

use std::fs;
use std::path::Path;
use std::process::Command;

/// What the folders of runs begin with; they end with the run's process.
const BEGINNING: &str = "sa-cli-nemesis";

/// Removes what runs have left whose process is no more.
pub fn sweep() {
    for folder in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = folder.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix(BEGINNING).and_then(|rest| rest.rsplit('-').next()?.parse::<u32>().ok());
        if process.is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists()) {
            remove(&folder.path());
        }
    }
}

/// Another run may remove it at the same time.
fn remove(folder: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    for place in places.filter(|place| Path::new(place).starts_with(folder)) {
        Command::new("umount").args(["--lazy", place]).output().ok();
    }
    fs::remove_dir_all(folder).ok();
}

/// No process has a number above 2^22.
#[test]
fn what_a_run_that_is_no_more_has_left_is_removed_and_nothing_else() {
    use super::town::Mount;
    let folder = |rest: &str| std::env::temp_dir().join(format!("{BEGINNING}-leftovers-{rest}")).display().to_string();
    let (dead, own) = (folder("4194305"), folder(&std::process::id().to_string()));
    for folder in [&dead, &own] {
        fs::create_dir_all(format!("{folder}/disk/deep")).unwrap();
    }
    // As a run that is killed leaves it.
    std::mem::forget(Mount::make(&format!("{dead}/disk"), 1));
    fs::write(format!("{dead}/disk/file"), "left").unwrap();
    sweep();
    assert!(!Path::new(&dead).exists(), "{dead} is there still");
    assert!(Path::new(&format!("{own}/disk/deep")).exists());
    assert!(!fs::read_to_string("/proc/self/mounts").unwrap().contains(&dead));
    fs::remove_dir_all(own).unwrap();
}
