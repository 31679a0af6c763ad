//! `top`: the cluster live.
//!
//! [`model`] is what is shown and how keys change it, [`screen`] how it looks; here are the terminal and a thread that asks
//! the metadata servers, so that keys answer while these don't.

mod model;
mod screen;

use crate::conf::Conf;
use crate::mds_link::MdsLink;
use crate::{Context, Outcome};
use crossterm::event::{Event as Input, KeyCode, KeyEventKind, KeyModifiers};
use model::{Model, News};
use std::io::IsTerminal;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;
use wire::mds_api::{Event, MdsReply, MdsRequest};

/// A look at the keyboard: how long a picture may be late.
const LOOK: Duration = Duration::from_millis(50);
/// Events asked for at a time.
const PAGE: u32 = 1000;

pub fn top(context: &Context, conf: Conf) -> Outcome {
    if !std::io::stdout().is_terminal() {
        return Err(
            "top draws on a terminal; for a file or a script there is 'stat', with --json or -X".into()
        );
    }
    let link = context.link()?;
    let mut model = Model::new(conf)?;
    let (to_model, news) = channel();
    let (running, ended) = channel();
    let refresh = Duration::from_millis(model.conf.refresh_ms);
    std::thread::spawn(move || ask_again_and_again(link, refresh, &to_model, &ended));
    let mut terminal = ratatui::init();
    let outcome = show(&mut terminal, &mut model, &news);
    ratatui::restore();
    drop(running);
    outcome
}

fn show(terminal: &mut ratatui::DefaultTerminal, model: &mut Model, news: &Receiver<News>) -> Outcome {
    let failed = |e: std::io::Error| format!("the terminal: {e}");
    let mut changed = true;
    while !model.over {
        while let Ok(news) = news.try_recv() {
            model.on_news(news);
            changed = true;
        }
        if changed {
            terminal.draw(|frame| screen::draw(frame, model)).map_err(failed)?;
        }
        changed = crossterm::event::poll(LOOK).map_err(failed)?;
        if !changed {
            continue;
        }
        match crossterm::event::read().map_err(failed)? {
            Input::Key(key) if key.kind == KeyEventKind::Release => {}
            Input::Key(key) if key.modifiers.contains(KeyModifiers::CONTROL) => {
                model.over |= key.code == KeyCode::Char('c');
            }
            Input::Key(key) => model.on_key(key.code),
            // Another size: draw anew.
            _ => {}
        }
    }
    Ok(())
}

/// Until the other end of `ended` is gone.
fn ask_again_and_again(mut link: MdsLink, refresh: Duration, to: &Sender<News>, ended: &Receiver<()>) {
    let mut after = 0;
    loop {
        let stat = match link.ask(&MdsRequest::ClusterStat) {
            Ok(MdsReply::Stat(stat)) => Ok(stat),
            Ok(_) => Err("unexpected answer of the metadata server".into()),
            Err(why) => Err(why),
        };
        let events = if stat.is_ok() { new_events(&mut link, &mut after) } else { Vec::new() };
        if to.send(News { stat, events }).is_err()
            || ended.recv_timeout(refresh) != Err(RecvTimeoutError::Timeout)
        {
            return;
        }
    }
}

fn new_events(link: &mut MdsLink, after: &mut u64) -> Vec<Event> {
    let mut all: Vec<Event> = Vec::new();
    // What can't be asked now is asked next time.
    while let Ok(MdsReply::Events { events, .. }) =
        link.ask(&MdsRequest::Events { after: *after, limit: PAGE })
    {
        let Some(last) = events.last() else { break };
        *after = last.number;
        all.extend(events);
    }
    all
}

#[cfg(test)]
pub(crate) mod tests;
