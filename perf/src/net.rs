//! `pcs-bench net`: latency and bandwidth between two hosts over the product's own network code.
//!
//! Header of its frames: `PBN1`, payload bytes u32 at 4, bytes wanted back u32 at 8, request id u64 at 16. The
//! listening half only answers; it keeps nothing and trusts nobody.

use crate::cpu::Meter;
use crate::drive::noise_blocks;
use crate::measure::{Case, Figures, Measurement, Operation, Pattern, Run};
use crate::progress::Progress;
use crate::report::{Finding, Report};
use crate::text::{number, time_us};
use crate::worker::Worker;
use shards::{BLOCK_BYTES, BodyLength, Buf, ConnId, Event, HEAD_BYTES, Io, Node, RawFrame};
use std::net::SocketAddr;
use std::sync::mpsc::Sender;
use std::time::Duration;

const MAGIC: &[u8; 4] = b"PBN1";
const LARGE_BYTES: usize = 1 << 20;
/// A peer that does not take its answers is not answered any more.
const MOST_UNSENT_BYTES: usize = 256 << 20;

type Head = [u8; HEAD_BYTES];

fn head(payload_bytes: usize, wanted_bytes: usize, id: u64) -> Head {
    let mut head = [0; HEAD_BYTES];
    head[..4].copy_from_slice(MAGIC);
    head[4..8].copy_from_slice(&(payload_bytes as u32).to_le_bytes());
    head[8..12].copy_from_slice(&(wanted_bytes as u32).to_le_bytes());
    head[16..24].copy_from_slice(&id.to_le_bytes());
    head
}

fn u32_at(head: &Head, at: usize) -> usize {
    u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes")) as usize
}

fn id(head: &Head) -> u64 {
    u64::from_le_bytes(head[16..24].try_into().expect("eight bytes"))
}

fn framing(head: &Head) -> Result<BodyLength, String> {
    let (payload_bytes, wanted) = (u32_at(head, 4), u32_at(head, 8));
    if &head[..4] != MAGIC || payload_bytes > LARGE_BYTES || wanted > LARGE_BYTES {
        return Err("the peer is not pcs-bench net (or of another version)".into());
    }
    Ok(BodyLength { meta_bytes: 0, payload_bytes })
}

fn data(noise: &Buf, len: usize) -> Buf {
    if len == 0 { Buf::empty() } else { noise.slice(0..len) }
}

struct Answerer {
    at: SocketAddr,
    noise: Buf,
    bound: Sender<SocketAddr>,
}

impl Node for Answerer {
    type Message = ();

    fn handle(&mut self, event: Event<()>, io: &mut dyn Io) {
        match event {
            Event::Start => match io.listen(self.at) {
                Ok(addr) => drop(self.bound.send(addr)),
                Err(e) => io.stop(Err(e.to_string())),
            },
            Event::Frame { conn, frame } => {
                if io.unsent_bytes(conn) > MOST_UNSENT_BYTES {
                    return io.close(conn);
                }
                let wanted = u32_at(&frame.head, 8);
                let head = head(wanted, 0, id(&frame.head));
                io.send(conn, RawFrame { head, meta: Buf::empty(), payload: data(&self.noise, wanted) });
            }
            Event::Accepted { peer, .. } => eprintln!("{peer} measures"),
            Event::Shutdown => io.stop(Ok(())),
            _ => {}
        }
    }
}

/// The listening half. `told` hears the address bound; returns only with an error.
pub fn listen(at: SocketAddr, told: impl FnOnce(SocketAddr)) -> Result<(), String> {
    let noise = noise_blocks(1, LARGE_BYTES).remove(0);
    let mut worker = Worker::start(framing, move |bound| Answerer { at, noise, bound })?;
    let addr = loop {
        if let Some(addr) = worker.answer()? {
            break addr;
        }
    };
    told(addr);
    loop {
        worker.answer()?;
    }
}

enum Order {
    Run(Case, Duration),
}

enum Answer {
    Connected,
    Figures(Box<Figures>),
}

struct Caller {
    to: SocketAddr,
    connections: usize,
    open: Vec<ConnId>,
    connected: usize,
    noise: Buf,
    run: Option<Run>,
    answers: Sender<Answer>,
}

impl Node for Caller {
    type Message = Order;

    fn handle(&mut self, event: Event<Order>, io: &mut dyn Io) {
        match event {
            Event::Start => self.open = (0..self.connections).map(|_| io.connect(self.to)).collect(),
            Event::Connected { .. } => {
                self.connected += 1;
                if self.connected == self.connections {
                    let _ = self.answers.send(Answer::Connected);
                }
            }
            Event::Message(Order::Run(case, time)) => {
                self.run = Some(Run::new(case, io.now(), time));
                (0..case.depth).for_each(|slot| self.start(slot, io));
            }
            Event::Frame { frame, .. } => {
                let slot = id(&frame.head) as usize;
                if let Some(run) = &mut self.run {
                    run.complete(slot, io.now());
                }
                self.start(slot, io);
            }
            Event::Closed { why, .. } => {
                let why = why.to_string();
                let why = why.split(" (os error ").next().unwrap_or_default();
                io.stop(Err(format!("{}: {why}; does 'pcs-bench net --listen' run there?", self.to)));
            }
            Event::Shutdown => io.stop(Ok(())),
            _ => {}
        }
    }
}

impl Caller {
    fn start(&mut self, slot: usize, io: &mut dyn Io) {
        let Some(run) = &mut self.run else { return };
        if run.start(slot, io.now()) {
            let (there, back) = match run.case.operation {
                Operation::Send => (run.case.block_bytes, 0),
                Operation::Receive => (0, run.case.block_bytes),
                _ => (0, 0),
            };
            let frame = RawFrame {
                head: head(there, back, slot as u64),
                meta: Buf::empty(),
                payload: data(&self.noise, there),
            };
            io.send(self.open[slot % self.open.len()], frame);
        } else if run.is_over() {
            let _ = self.answers.send(Answer::Figures(Box::new(run.figures())));
            self.run = None;
        }
    }
}

pub struct Settings {
    pub to: SocketAddr,
    pub seconds: f64,
    pub connections: usize,
}

/// The measuring half.
pub fn run(settings: &Settings, progress: &mut Progress) -> Result<Report, String> {
    let (to, connections) = (settings.to, settings.connections);
    let mut report = Report::new("net", to.to_string());
    report.fact("connections", connections.to_string());
    progress.header(&report);
    let noise = noise_blocks(1, LARGE_BYTES).remove(0);
    let mut worker = Worker::start(framing, move |answers| Caller {
        to,
        connections,
        open: Vec::new(),
        connected: 0,
        noise,
        run: None,
        answers,
    })?;
    while worker.answer()?.is_none() {}
    let cases = cases(connections);
    progress.begin(cases.len(), settings.seconds);
    for case in cases {
        progress.case(case);
        let meter = Meter::start(&[]);
        worker.order(Order::Run(case, Duration::from_secs_f64(settings.seconds)));
        let figures = loop {
            match worker.answer()? {
                Some(Answer::Figures(figures)) => break *figures,
                _ => progress.tick(),
            }
        };
        let measurement = Measurement::new(case, figures, &meter.stop());
        progress.measured(&measurement);
        report.measurements.push(measurement);
    }
    progress.end();
    report.findings = findings(&report.measurements);
    Ok(report)
}

fn cases(connections: usize) -> Vec<Case> {
    let case = |operation, block_bytes, depth| Case {
        operation,
        pattern: Pattern::Sequential,
        block_bytes,
        depth,
        flushed: false,
    };
    let large = 8.max(connections * 4);
    vec![
        case(Operation::Ping, 0, 1),
        case(Operation::Send, BLOCK_BYTES, 1),
        case(Operation::Send, BLOCK_BYTES, 32),
        case(Operation::Receive, BLOCK_BYTES, 1),
        case(Operation::Receive, BLOCK_BYTES, 32),
        case(Operation::Send, LARGE_BYTES, large),
        case(Operation::Receive, LARGE_BYTES, large),
    ]
}

fn findings(all: &[Measurement]) -> Vec<Finding> {
    let rate = |operation: Operation| {
        let large = |m: &&Measurement| m.operation == operation && m.block_bytes == LARGE_BYTES;
        all.iter().find(large).map_or(0.0, |m| m.figures.bytes_per_s / 1e6)
    };
    let trip_us =
        all.iter().find(|m| m.operation == Operation::Ping).map_or(0.0, |m| m.figures.latency_us.p50);
    let mut findings = vec![Finding::note(format!(
        "A round trip takes {}; {} MB/s there, {} MB/s back. A replicated write needs two round trips and one \
         journal write ('pcs-bench disk'): its latency can't be less.",
        time_us(trip_us),
        number(rate(Operation::Send)),
        number(rate(Operation::Receive)),
    ))];
    if rate(Operation::Send) < 130.0 {
        findings.push(Finding::warning(
            "No more than 1 Gbit/s: one client is then bound to about 100 MB/s, and so is repair between two \
             servers. Use 10 Gbit/s for production.",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_halves_measure_each_other() {
        let (tell, hear) = std::sync::mpsc::channel();
        std::thread::spawn(move || listen(([127, 0, 0, 1], 0).into(), |addr| tell.send(addr).unwrap()));
        let to = hear.recv_timeout(Duration::from_secs(10)).unwrap();
        let settings = Settings { to, seconds: 0.05, connections: 2 };
        let report = run(&settings, &mut Progress::new(false)).unwrap();
        assert_eq!(report.measurements.len(), 7);
        assert!(report.measurements.iter().all(|m| m.figures.ops > 0), "{report:?}");
        assert!(report.findings[0].text.contains("round trip"));
    }

    #[test]
    fn a_silent_address_is_explained() {
        let settings = Settings { to: ([127, 0, 0, 1], 1).into(), seconds: 0.05, connections: 1 };
        let error = run(&settings, &mut Progress::new(false)).unwrap_err();
        assert!(error.contains("--listen"), "{error}");
    }

    #[test]
    fn strangers_are_refused() {
        assert!(framing(&[0; HEAD_BYTES]).unwrap_err().contains("pcs-bench"));
        assert!(framing(&head(usize::from(u16::MAX) << 8, 0, 1)).is_err());
        assert_eq!(framing(&head(4096, 0, 1)).unwrap().payload_bytes, 4096);
    }
}
