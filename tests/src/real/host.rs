//! One host: a network namespace of its own, and a shell in it that starts programs. Files are those of everybody.
//!
//! Programs are started by the shell and not by this process: a child of ours would hold our files of FUSE mounts until it
//! has closed them on exec, and closing waits for the mount, which may wait for the very server that is to be started.
//! All hosts must therefore be made before files on mounts are opened.

use super::switch::{self, Port, Switch};
use crate::processes::{Ended, programs};
use nix::sched::{CloneFlags, unshare};
use shards::tap::{Tap, TapConfig};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// A network that nothing outside these namespaces can reach or is confused by.
const NETWORK: [u8; 3] = [10, 77, 0];
const NETMASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
/// A command that has not ended by then has failed.
const COMMAND_WITHIN: Duration = Duration::from_secs(120);

pub struct Host {
    pub ip: Ipv4Addr,
    pub port: Port,
    /// All of the host's files.
    pub dir: PathBuf,
    shell: Mutex<Shell>,
}

/// Ends with its input, and its children then get SIGKILL: when this process ends, so does everything on the host.
struct Shell {
    process: Child,
    commands: Option<ChildStdin>,
    answers: Receiver<String>,
}

impl Host {
    /// Makes a host with an empty directory and plugs it in.
    pub fn new(dir: PathBuf, switch: &mut Switch) -> Host {
        let last = switch.next_port() as u8 + 1;
        Host::with_shell(dir, Ipv4Addr::new(NETWORK[0], NETWORK[1], NETWORK[2], last), switch, &["sh"])
    }

    /// The same with an address of your choice, and another command line that ends in a shell.
    pub(super) fn with_shell(
        dir: PathBuf,
        ip: Ipv4Addr,
        switch: &mut Switch,
        shell: &'static [&'static str],
    ) -> Host {
        fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let port = switch.next_port();
        let config =
            TapConfig { name: "eth0", mac: switch::mac(port), ip, netmask: NETMASK, mtu: switch::MTU };
        // The namespace is this thread's, then the shell's alone.
        let made = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(|e| format!("a network namespace (needs root): {e}"))?;
            let tap = Tap::open(&config).map_err(|e| e.to_string())?;
            Ok::<_, String>((tap, Shell::start(shell)?))
        });
        let made = made.join().expect("making a host does not panic");
        let (tap, shell) = made.unwrap_or_else(|why| panic!("{}: {why}", dir.display()));
        let port = switch.plug(tap);
        Host { ip, port, dir, shell: Mutex::new(shell) }
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.join(name).to_str().expect("a path of plain characters").into()
    }

    /// Starts a program of ours; returns its process id. What it says goes into `PROGRAM.out`.
    pub fn start(&self, program: &str, args: &[&str]) -> i32 {
        let out = self.path(&format!("{program}.out"));
        let line = format!(
            "setpriv --pdeathsig KILL -- {} </dev/null >{} 2>&1 & echo $!",
            command_line(program, args),
            quoted(&out)
        );
        let answer = self.ask(&line);
        answer.parse().unwrap_or_else(|_| panic!("{program}: the shell says '{answer}'"))
    }

    /// Runs a program of ours to its end.
    pub fn run(&self, program: &str, args: &[&str]) -> Ended {
        self.run_quoted(&command_line(program, args))
    }

    fn run_quoted(&self, line: &str) -> Ended {
        let began = Instant::now();
        let (out, err) = (self.path("command.out"), self.path("command.err"));
        let answer = self.ask(&format!("{line} </dev/null >{} 2>{}; echo $?", quoted(&out), quoted(&err)));
        let text = |path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        let code = answer.parse().unwrap_or_else(|_| panic!("{line}: the shell says '{answer}'"));
        Ended { code, text: text(&out) + &text(&err), took: began.elapsed() }
    }

    /// Starts a line of shell commands of which the last is `exec`; returns its process id. What it says goes into
    /// `NAME.out`.
    pub fn start_line(&self, name: &str, line: &str) -> i32 {
        let out = self.path(&format!("{name}.out"));
        let line = format!(
            "setpriv --pdeathsig KILL -- sh -c {} </dev/null >{} 2>&1 & echo $!",
            quoted(line),
            quoted(&out)
        );
        let answer = self.ask(&line);
        answer.parse().unwrap_or_else(|_| panic!("{name}: the shell says '{answer}'"))
    }

    /// Runs a line of shell commands to its end.
    pub fn run_line(&self, line: &str) -> Ended {
        self.run_quoted(&format!("sh -c {}", quoted(line)))
    }

    /// Gives the shell a line and waits for the one it prints.
    fn ask(&self, line: &str) -> String {
        let mut shell = self.shell.lock().expect("no panic under this lock");
        let commands = shell.commands.as_mut().expect("the shell runs");
        writeln!(commands, "{line}").unwrap_or_else(|e| panic!("the shell of {}: {e}", self.dir.display()));
        let answer = shell.answers.recv_timeout(COMMAND_WITHIN);
        drop(shell);
        answer.unwrap_or_else(|_| panic!("not within {COMMAND_WITHIN:?}: {line}"))
    }

    pub fn etc(&self) -> String {
        self.path("etc")
    }

    /// Copies a file into this host's directory.
    pub fn copy_in(&self, from: &Path, name: &str) {
        let to = self.dir.join(name);
        fs::create_dir_all(to.parent().expect("below the host's directory"))
            .expect("a directory can be made");
        fs::copy(from, &to).unwrap_or_else(|e| panic!("{} to {}: {e}", from.display(), to.display()));
    }
}

impl Shell {
    fn start(line: &[&str]) -> Result<Shell, String> {
        let mut process = Command::new(line[0])
            .args(&line[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .env_remove("PSTORAGE_NAME")
            .env_remove("PSTORAGE_ETC")
            .spawn()
            .map_err(|e| format!("{}: {e}", line[0]))?;
        let (tell, answers) = channel();
        let said = BufReader::new(process.stdout.take().expect("a pipe was asked for"));
        std::thread::spawn(move || said.lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));
        let commands = process.stdin.take();
        Ok(Shell { process, commands, answers })
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        self.commands = None;
        let _ = self.process.kill(); // It may wait for a command.
        let _ = self.process.wait();
    }
}

fn command_line(program: &str, args: &[&str]) -> String {
    let program = programs().join(program);
    let mut line = quoted(program.to_str().expect("a path of plain characters"));
    for arg in args {
        line += " ";
        line += &quoted(arg);
    }
    line
}

pub(super) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Whether a process runs: it is neither gone nor waiting to be buried.
pub fn is_running(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}
