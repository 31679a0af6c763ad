//! Three hosts on which the guide's blocks are run.

use crate::commands::{adapted, adapted_line, added, address, in_background, typed};
use crate::say;
use pstorage_tests::guide::{Block, Kind, compare};
use pstorage_tests::processes::Dir;
use pstorage_tests::real::{Machine, Switch, sweep};
use serde_json::Value;
use std::time::{Duration, Instant};

/// So many mistakes are enough.
const MANY: usize = 20;
/// Far longer than anything takes on an idle machine.
const PATIENCE: Duration = Duration::from_secs(120);
struct Daemon {
    host: usize,
    name: String,
    pid: i32,
}

pub struct Story {
    // In the order in which they must go.
    machines: Vec<Machine>,
    _switch: Switch,
    daemons: Vec<Daemon>,
    /// What the last command has printed.
    printed: String,
    ran: usize,
    hidden: usize,
    wrong: Vec<String>,
    skipped: Vec<(String, String)>,
    began: Instant,
    _dir: Dir,
}

impl Story {
    pub fn new(hosts: usize) -> Story {
        sweep();
        let dir = Dir::new("real-guide");
        let mut switch = Switch::new(1);
        let mut machine = |n| {
            let name = format!("host{n}");
            Machine::new(dir.0.join(&name), &name, address(n), &mut switch)
        };
        let machines = (1..=hosts).map(&mut machine).collect();
        Story {
            machines,
            _switch: switch,
            daemons: vec![],
            printed: String::new(),
            ran: 0,
            hidden: 0,
            wrong: vec![],
            skipped: vec![],
            began: Instant::now(),
            _dir: dir,
        }
    }

    pub fn follow(&mut self, block: &Block) {
        let options = &block.options;
        let missing =
            options.needs.as_ref().filter(|n| self.machine(1).run(&format!("command -v {n}")).code != 0);
        let skip = options.skip.clone().or(missing.map(|program| format!("no {program} here")));
        if let Some(why) = skip {
            return self.skipped.push((block.place.clone(), why));
        }
        match &block.kind {
            Kind::Hidden(_) => self.hidden += 1,
            _ => self.ran += 1,
        }
        let began = Instant::now();
        for &host in &options.hosts {
            self.follow_on(block, host);
        }
        self.show(&format!("=== {:.1} s for {}\n", began.elapsed().as_secs_f64(), block.place));
    }

    /// With GUIDE_SHOW in the environment all is told.
    fn show(&self, text: &str) {
        if std::env::var_os("GUIDE_SHOW").is_some() {
            say(text);
        }
    }

    fn follow_on(&mut self, block: &Block, host: usize) {
        let options = &block.options;
        match &block.kind {
            Kind::Script(commands) | Kind::Hidden(commands) => {
                let commands = added(commands, &options.add);
                if options.exit == [0] {
                    self.command(block, host, &format!("set -e\n{commands}"), None, options.background);
                } else {
                    commands.lines().for_each(|line| self.command(block, host, line, None, false));
                }
            }
            Kind::Session(steps) => {
                for (number, step) in (1..).zip(steps) {
                    let stays = options.background && number == steps.len();
                    self.command(block, host, &added(&step.command, &options.add), Some(&step.prints), stays);
                }
            }
            Kind::Text(lines) => match &options.file {
                Some(path) => {
                    let path = self.machine(host).file(path);
                    std::fs::create_dir_all(path.parent().expect("below the root"))
                        .expect("a directory can be made");
                    std::fs::write(&path, lines.join("\n") + "\n")
                        .unwrap_or_else(|e| panic!("{}: {e}", block.place));
                }
                None if options.output => {
                    if let Err(why) = compare(&adapted(options, host, lines), &self.printed) {
                        self.wrong(block, &format!("{why}\nprinted was:\n{}", self.printed));
                    }
                }
                None => panic!("{}: what is this: output, file=PATH, or skip: REASON?", block.place),
            },
        }
    }

    /// The rest of the guide is looked at too, but not forever.
    fn wrong(&mut self, block: &Block, why: &str) {
        let text = format!("docs/admin-guide/{}: {why}", block.place);
        self.show(&format!("WRONG {text}"));
        self.wrong.push(text);
        if self.wrong.len() == MANY {
            self.report();
        }
    }

    fn machine(&self, host: usize) -> &Machine {
        &self.machines[host - 1]
    }

    /// Runs a command; what it prints must be this, if that is told.
    fn command(
        &mut self,
        block: &Block,
        host: usize,
        command: &str,
        prints: Option<&Vec<String>>,
        stays: bool,
    ) {
        let options = &block.options;
        let command = adapted_line(options, host, command);
        if stays {
            let name = format!("daemon{}", self.daemons.len() + 1);
            let pid = self.machine(host).start(&name, &in_background(&command));
            self.daemons.push(Daemon { host, name, pid });
            return;
        }
        let prints = prints.map(|lines| adapted(options, host, lines));
        let began = Instant::now();
        loop {
            let machine = self.machine(host);
            let mut ended = match &options.input[..] {
                [] => machine.run(&command),
                words => machine.run_typing(&command, &words.iter().map(|w| typed(w)).collect::<Vec<_>>()),
            };
            if options.screen {
                ended.text = looks(&ended.text);
            }
            let same = prints.as_ref().map_or(Ok(()), |lines| compare(lines, &ended.text));
            if options.exit.contains(&ended.code) && same.is_ok() {
                self.show(&format!("[host{host}] {command}\n{}", ended.text));
                self.printed = ended.text;
                return;
            }
            if !options.wait || began.elapsed() > PATIENCE {
                let why = same.err().unwrap_or_default();
                let text = format!("$ {command}\n{}exit code {}; {why}", ended.text, ended.code);
                self.wrong(block, &format!("on host {host}:\n{text}\n{}", self.daemons_say()));
                self.printed = ended.text;
                return;
            }
            self.show(&format!("not yet: {}{}", ended.text, same.err().unwrap_or_default()));
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The last words of programs that were left running and run no more.
    fn daemons_say(&self) -> String {
        let last = |d: &Daemon| {
            let said = self.machine(d.host).said(&d.name);
            let lines: Vec<&str> = said.lines().collect();
            let tail = lines[lines.len().saturating_sub(5)..].join("\n");
            format!("--- {} on host {} has ended:\n{tail}\n", d.name, d.host)
        };
        self.daemons.iter().filter(|d| !self.machine(d.host).runs(d.pid)).map(last).collect()
    }

    /// 3 MDS, 5 CS and 2 clients, healthy, and what one client writes the other one reads.
    pub fn check_cluster(&self) {
        let mut stat = Value::Null;
        let began = Instant::now();
        while !is_whole(&stat) {
            assert!(began.elapsed() < PATIENCE, "not whole: {stat:#}{}", self.daemons_say());
            let text = self.machine(1).run("pstorage -c pcs1 --json stat").text;
            stat = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
            std::thread::sleep(Duration::from_millis(100));
        }
        let first_word = |host, line: &str| {
            let ended = self.machine(host).run(line);
            ended.ok().split_whitespace().next().expect("a sum").to_string()
        };
        let written = first_word(1, "head -c 8M /dev/urandom >/mnt/pcs1/end && sha256sum /mnt/pcs1/end");
        assert_eq!(written, first_word(2, "sha256sum /mnt/pcs1/end"));
    }

    pub fn report(&self) {
        let seconds = self.began.elapsed().as_secs();
        say(&format!(
            "guide: {} blocks run, {} hidden ones of the test, {} skipped, {seconds} s",
            self.ran,
            self.hidden,
            self.skipped.len()
        ));
        self.skipped.iter().for_each(|(place, why)| say(&format!("  skipped {place}: {why}")));
        assert!(self.wrong.is_empty(), "{} mistakes:\n\n{}", self.wrong.len(), self.wrong.join("\n\n"));
    }
}

/// What the terminal showed before the program gave it back.
fn looks(drawn: &str) -> String {
    let mut screen = vt100::Parser::new(40, 110, 0);
    screen.process(drawn.rsplit_once("\x1b[?1049l").map_or(drawn, |(shown, _)| shown).as_bytes());
    screen.screen().contents()
}

fn is_whole(stat: &Value) -> bool {
    let all = |list: &str, count, good: &dyn Fn(&Value) -> bool| {
        let there = stat[list].as_array().into_iter().flatten().filter(|v| v["status"] != "dropped");
        there.clone().count() == count && there.clone().all(good)
    };
    all("mds", 3, &|mds| mds["available"] == true && mds["voter"] == true)
        && all("cs", 5, &|cs| cs["status"] == "active")
        && all("clients", 2, &|_| true)
        && stat["status"] == "healthy"
        && stat["chunks"]["healthy"] == stat["chunks"]["total"]
}
