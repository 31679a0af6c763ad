//! `top`: the cluster live.
//!
//! [`model`] is what is shown and how keys change it, [`screen`] how it looks; here are the terminal and a thread that asks
//! the metadata servers, so that keys answer while these don't.

mod model;
mod screen;

use crate::conf::Conf;
use crate::news::{News, Watch};
use crate::{Context, Outcome};
use crossterm::event::{Event as Input, KeyCode, KeyEventKind, KeyModifiers};
use model::Model;
use std::io::IsTerminal;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// A look at the keyboard: how long a picture may be late.
const LOOK: Duration = Duration::from_millis(50);

pub fn top(context: &Context, conf: Conf) -> Outcome {
    if !std::io::stdout().is_terminal() {
        return Err(
            "top draws on a terminal; for a file or a script there is 'stat', with --json or -X".into()
        );
    }
    let link = context.link()?;
    let mut model = Model::new(conf)?;
    let (to_model, news) = channel();
    let (running, ended) = channel::<()>();
    let refresh = Duration::from_millis(model.conf.refresh_ms);
    let mut watch = Watch::new(link);
    std::thread::spawn(move || {
        while to_model.send(watch.look()).is_ok()
            && ended.recv_timeout(refresh) == Err(RecvTimeoutError::Timeout)
        {}
    });
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

#[cfg(test)]
pub(crate) mod tests;
