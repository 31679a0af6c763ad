//! What `top` shows and how keys change it: no terminal, clock or cluster inside.

use crate::conf::Conf;
use crate::news::News;
use crate::tables::{self, CsView, Grid};
use crossterm::event::KeyCode;
use std::collections::{BTreeMap, VecDeque};
use wire::mds_api::{ClusterStat, Event};

/// Events that are kept to be looked at.
const MOST_EVENTS: usize = 10_000;
/// Points of the curves of reads and writes.
const MOST_POINTS: usize = 600;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Pane {
    Mds,
    Cs,
    Clients,
    Chunks,
    Events,
}

impl Pane {
    pub fn title(self) -> &'static str {
        match self {
            Pane::Mds => "Metadata servers",
            Pane::Cs => "Chunk servers",
            Pane::Clients => "Clients",
            Pane::Chunks => "Chunks",
            Pane::Events => "Events",
        }
    }
}

/// The order of a table: columns by name, as the columns of the chunk servers change with the view.
type Order = Vec<(&'static str, bool)>;

pub struct Model {
    pub conf: Conf,
    pub stat: Option<Box<ClusterStat>>,
    pub trouble: Option<String>,
    events: VecDeque<Event>,
    /// Bytes per second of all chunk servers, the newest last.
    pub reads: VecDeque<u64>,
    pub writes: VecDeque<u64>,
    /// One of them fills the screen; none: all of them share it.
    pub only: Option<Pane>,
    /// The table that arrows and sorting are for.
    pub focus: Pane,
    pub cs_view: CsView,
    pub verbose: bool,
    /// Events below the other tables.
    pub messages: bool,
    pub help: bool,
    pub detail: bool,
    pub filter: String,
    pub typing: bool,
    orders: BTreeMap<Pane, Order>,
    selected: BTreeMap<Pane, usize>,
    pub over: bool,
}

impl Model {
    /// # Errors
    /// A sentence, when the configuration names columns that aren't there.
    pub fn new(conf: Conf) -> Result<Model, String> {
        let mut model = Model {
            stat: None,
            trouble: None,
            events: VecDeque::new(),
            reads: VecDeque::new(),
            writes: VecDeque::new(),
            only: None,
            focus: Pane::Cs,
            cs_view: CsView::default(),
            verbose: true,
            messages: true,
            help: false,
            detail: false,
            filter: String::new(),
            typing: false,
            orders: BTreeMap::new(),
            selected: BTreeMap::new(),
            over: false,
            conf,
        };
        for (pane, wish) in [
            (Pane::Mds, model.conf.mds_sort.clone()),
            (Pane::Cs, model.conf.cs_sort.clone()),
            (Pane::Clients, model.conf.clnt_sort.clone()),
        ] {
            if let Some(wish) = wish {
                let grid = model.grid(pane);
                let order = grid.order(&wish)?;
                model
                    .orders
                    .insert(pane, order.iter().map(|(at, inverse)| (grid.heads[*at], *inverse)).collect());
            }
        }
        Ok(model)
    }

    pub fn on_news(&mut self, news: News) {
        self.events.extend(news.events);
        let many = self.events.len().saturating_sub(MOST_EVENTS);
        self.events.drain(..many);
        match news.stat {
            Ok(stat) => {
                let point = |points: &mut VecDeque<u64>, value: u64| {
                    points.push_back(value);
                    if points.len() > MOST_POINTS {
                        points.pop_front();
                    }
                };
                point(&mut self.reads, stat.cs.iter().map(|cs| cs.read_bytes_per_s).sum());
                point(&mut self.writes, stat.cs.iter().map(|cs| cs.write_bytes_per_s).sum());
                self.stat = Some(stat);
                self.trouble = None;
            }
            Err(why) => self.trouble = Some(why),
        }
    }

    pub fn on_key(&mut self, key: KeyCode) {
        if self.typing {
            match key {
                KeyCode::Char(letter) => self.filter.push(letter),
                KeyCode::Backspace => drop(self.filter.pop()),
                KeyCode::Enter => self.typing = false,
                KeyCode::Esc => (self.typing, self.filter) = (false, String::new()),
                _ => {}
            }
            return;
        }
        if self.help {
            // Any key ends the help; only q ends all.
            self.help = false;
            self.over = key == KeyCode::Char('q');
            return;
        }
        match key {
            KeyCode::Char('q') => self.over = true,
            KeyCode::Char('a') => self.show(None, self.focus),
            KeyCode::Char('m') => self.show(Some(Pane::Mds), Pane::Mds),
            KeyCode::Char('c') => self.show(Some(Pane::Cs), Pane::Cs),
            KeyCode::Char('t') => self.show(Some(Pane::Clients), Pane::Clients),
            KeyCode::Char('x') => self.show(Some(Pane::Chunks), Pane::Chunks),
            KeyCode::Char('e') => self.show(Some(Pane::Events), Pane::Events),
            KeyCode::Char('i') => {
                self.cs_view = self.cs_view.next();
                self.focus = Pane::Cs;
                self.only = self.only.map(|_| Pane::Cs);
            }
            KeyCode::Char('v' | 'V') => self.verbose = !self.verbose,
            KeyCode::Char('g') => self.messages = !self.messages,
            KeyCode::Char('n') => self.conf.numeric_addrs = !self.conf.numeric_addrs,
            KeyCode::Char('h' | '?') => self.help = true,
            KeyCode::Char('s') => self.sort_by_next(),
            KeyCode::Char('r') => self.reverse(),
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Tab => {
                let shown = self.panes();
                let at = shown.iter().position(|pane| *pane == self.focus).map_or(0, |at| at + 1);
                self.focus = shown[at % shown.len()];
                self.detail = false;
            }
            KeyCode::Enter => self.detail = !self.detail,
            KeyCode::Esc if self.detail => self.detail = false,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Up => self.select(-1),
            KeyCode::Down => self.select(1),
            KeyCode::PageUp => self.select(-20),
            KeyCode::PageDown => self.select(20),
            KeyCode::Home => self.select(isize::MIN),
            KeyCode::End => self.select(isize::MAX),
            _ => {}
        }
    }

    /// The tables that are to be seen, from top to bottom.
    pub fn panes(&self) -> Vec<Pane> {
        match self.only {
            Some(pane) => vec![pane],
            None if self.messages => vec![Pane::Mds, Pane::Cs, Pane::Clients, Pane::Events],
            None => vec![Pane::Mds, Pane::Cs, Pane::Clients],
        }
    }

    /// A table, filtered and sorted.
    pub fn table(&self, pane: Pane) -> Grid {
        let mut grid = self.grid(pane);
        if !self.filter.is_empty() && pane == self.focus {
            grid.filter(&self.filter);
        }
        if let Some(order) = self.orders.get(&pane) {
            let order: Vec<_> =
                order.iter().filter_map(|(name, inverse)| Some((grid.column(name)?, *inverse))).collect();
            grid.sort(&order);
        }
        grid
    }

    fn grid(&self, pane: Pane) -> Grid {
        let hosts = !self.conf.numeric_addrs;
        let stat = self.stat.as_deref();
        match pane {
            Pane::Mds => tables::mds(stat.map_or(&[], |s| &s.mds), hosts),
            Pane::Cs => tables::cs(stat.map_or(&[], |s| &s.cs), self.cs_view, hosts),
            Pane::Clients => tables::clients(stat.map_or(&[], |s| &s.clients), hosts),
            Pane::Chunks => tables::chunks(&stat.map(|s| s.chunks).unwrap_or_default()),
            Pane::Events => tables::events(self.events.iter(), self.verbose),
        }
    }

    /// The row that is pointed at, and the column and direction a table is sorted by.
    pub fn selected(&self, pane: Pane, rows: usize) -> usize {
        self.selected.get(&pane).map_or(0, |at| (*at).min(rows.saturating_sub(1)))
    }

    pub fn sorted_by(&self, pane: Pane) -> Option<(&'static str, bool)> {
        self.orders.get(&pane).and_then(|order| order.first().copied())
    }

    /// All that is known of the row that is pointed at: names and values.
    pub fn facts(&self) -> Vec<(String, String)> {
        let grid = self.table(self.focus);
        let Some(row) = grid.rows.get(self.selected(self.focus, grid.rows.len())) else { return Vec::new() };
        let shown = || {
            let pairs = grid.heads.iter().zip(&row.cells);
            pairs.map(|(head, cell)| (head.to_lowercase(), cell.text.trim().to_string())).collect()
        };
        let Some(stat) = &self.stat else { return shown() };
        let value = match self.focus {
            Pane::Mds => stat.mds.iter().find(|m| m.mds.0 == row.id).map(serde_json::to_value),
            Pane::Cs => stat.cs.iter().find(|c| u64::from(c.cs.0) == row.id).map(serde_json::to_value),
            Pane::Clients => stat.clients.iter().find(|c| c.client.0 == row.id).map(serde_json::to_value),
            Pane::Chunks | Pane::Events => None,
        };
        match value {
            Some(Ok(serde_json::Value::Object(fields))) => {
                let text = |value: &serde_json::Value| match value {
                    serde_json::Value::String(text) => text.clone(),
                    other => other.to_string(),
                };
                fields.iter().map(|(name, value)| (name.clone(), text(value))).collect()
            }
            _ => shown(),
        }
    }

    fn show(&mut self, only: Option<Pane>, focus: Pane) {
        (self.only, self.detail) = (only, false);
        self.focus = focus;
        if !self.panes().contains(&focus) {
            self.focus = Pane::Cs;
        }
    }

    fn select(&mut self, by: isize) {
        let rows = self.table(self.focus).rows.len();
        let at = self.selected(self.focus, rows).saturating_add_signed(by);
        self.selected.insert(self.focus, at.min(rows.saturating_sub(1)));
    }

    fn sort_by_next(&mut self) {
        let grid = self.grid(self.focus);
        let now = self.sorted_by(self.focus).and_then(|(name, _)| grid.column(name));
        match now.map_or(0, |at| at + 1) {
            at if at < grid.heads.len() => {
                self.orders.insert(self.focus, vec![(grid.heads[at], false)]);
            }
            // After the last column: the order of the cluster.
            _ => {
                self.orders.remove(&self.focus);
            }
        }
    }

    fn reverse(&mut self) {
        if let Some(first) = self.orders.get_mut(&self.focus).and_then(|order| order.first_mut()) {
            first.1 = !first.1;
        }
    }
}
