//! How the model of `top` looks on a terminal of any size.

use super::model::{Model, Pane};
use crate::commands::stat::human;
use crate::tables::{self, Grid, Mood};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Clear, Paragraph, Row, Sparkline, Table, TableState, Wrap};
use wire::mds_api::{ClusterStat, CsStatus};

const KEYS: &str = "h help  q quit  a all  m MDS  c CS  i views  t clients  x chunks  e events  / filter";

const HELP: &str = "\
a  all tables                        m  metadata servers
c  chunk servers                     i  next view of the chunk servers
t  clients                           x  chunks by state
e  events                            v  events: all, or warnings and errors
g  events below the other tables     n  host names
Tab      the next table              Arrows, PgUp, PgDn, Home, End: move
s  sort by the next column           r  the other way round
/  show what contains a text         Esc  show all again
Enter    all that is known of a row  q  quit

MDS: 'M' is the master. CS: active, inactive (silent for less than
mds.wd.offline_tout), offline (longer: its chunks are copied), dropped.
Flags: J write journal on an SSD, C checksums, D direct I/O, c journal empty,
R read cache. Settings: ETC/pstorage.conf (refresh.time, cs.sort, …).";

fn style(mood: Mood) -> Style {
    match mood {
        Mood::Good => Style::new().fg(Color::Green),
        Mood::Plain => Style::new(),
        Mood::Warn => Style::new().fg(Color::Yellow),
        Mood::Bad => Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
    }
}

pub fn draw(frame: &mut Frame, model: &Model) {
    let head = match &model.stat {
        Some(stat) => header(stat, model),
        None => vec![Line::from("Asking the metadata servers …")],
    };
    let width = frame.area().width.max(1);
    // Long lines go on below.
    let head_rows: u16 = head.iter().map(|line| (line.width() as u16).div_ceil(width).max(1)).sum();
    let curves = if frame.area().height >= 36 && model.stat.is_some() { 3 } else { 0 };
    let [top, curve, body, foot] = Layout::vertical([
        Constraint::Length(head_rows),
        Constraint::Length(curves),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(head).wrap(Wrap { trim: false }), top);
    if curves > 0 {
        draw_curves(frame, curve, model);
    }
    if model.help {
        frame.render_widget(Paragraph::new(HELP), body);
    } else if model.detail {
        draw_detail(frame, body, model);
    } else {
        draw_tables(frame, body, model);
    }
    let line = match (&model.trouble, model.typing) {
        (_, true) => Line::from(format!("show what contains: {}_", model.filter)),
        // What it means for the picture above comes first: the line may be cut.
        (Some(why), _) if model.stat.is_some() => {
            Line::from(format!("NOT CURRENT: {}", why.replace('\n', " "))).red()
        }
        (Some(why), _) => Line::from(why.replace('\n', " ")).red(),
        _ if !model.filter.is_empty() => Line::from(format!("only '{}' (Esc: all)  {KEYS}", model.filter)),
        _ => Line::from(KEYS).dim(),
    };
    frame.render_widget(Clear, foot);
    frame.render_widget(Paragraph::new(line), foot);
}

/// The lines above the tables, as `stat` prints them.
fn header(stat: &ClusterStat, model: &Model) -> Vec<Line<'static>> {
    let count = |status: CsStatus| stat.cs.iter().filter(|cs| cs.status == status).count();
    let up = stat.mds.iter().filter(|m| m.available).count();
    let mark = |ok: bool| match ok {
        true => Span::styled("[OK]", style(Mood::Good)),
        false => Span::styled("[!!]", style(Mood::Warn)),
    };
    let short = stat
        .cs
        .iter()
        .any(|cs| cs.status == CsStatus::Active && model.conf.short_of_space(cs.total_bytes, cs.free_bytes));
    let c = &stat.chunks;
    let share = |n: u64| if c.total == 0 { 100.0 } else { 100.0 * n as f64 / c.total as f64 };
    // States that nothing is in are of no interest; the three of the guide are always shown.
    let rest: String = [
        ("standby", c.standby),
        ("blocked", c.blocked),
        ("offline", c.offline),
        ("replicating", c.replicating),
        ("overcommitted", c.overcommitted),
        ("deleting", c.deleting),
        ("misplaced", c.misplaced),
    ]
    .iter()
    .filter(|(_, n)| *n > 0)
    .map(|(name, n)| format!(", {name}: {n}"))
    .collect();
    let sum = |of: &dyn Fn(&wire::mds_api::CsInfo) -> u64| stat.cs.iter().map(of).sum::<u64>();
    let mut lines = vec![
        Line::from(vec![
            format!("Cluster '{}': ", stat.cluster).into(),
            Span::styled(stat.status.clone(), style(tables::cluster_mood(stat)).add_modifier(Modifier::BOLD)),
        ]),
        Line::from(vec![
            "Space: ".into(),
            mark(!short),
            format!(
                " allocatable {} of {}, free {}",
                human(stat.fs.available_bytes),
                human(stat.fs.total_bytes),
                human(stat.fs.free_bytes)
            )
            .into(),
        ]),
        Line::from(format!(
            "MDS nodes: {up} of {}, epoch uptime: {}",
            stat.mds.len(),
            tables::duration(stat.epoch_uptime_ms / 1000)
        )),
        Line::from(format!(
            "CS nodes:  {} of {} ({} avail, {} inactive, {} offline)",
            count(CsStatus::Active),
            stat.cs.len() - count(CsStatus::Dropped),
            count(CsStatus::Active),
            count(CsStatus::Inactive),
            count(CsStatus::Offline)
        )),
        Line::from(format!(
            "License: {}, Replication: {} norm, {} limit",
            stat.license, stat.default_policy.normal, stat.default_policy.minimum
        )),
        Line::from(vec![
            "Chunks: ".into(),
            mark(tables::chunks_mood(c) == Mood::Good),
            format!(
                " {} total, {:.2}% healthy, {:.2}% degraded, {:.2}% urgent{rest}",
                c.total,
                share(c.healthy),
                share(c.degraded),
                share(c.urgent)
            )
            .into(),
        ]),
        Line::from(format!(
            "FS: {} files, {} chunks, {} replicas, {} clients",
            stat.fs.files,
            stat.fs.chunks,
            sum(&|cs| cs.replicas),
            stat.clients.len()
        )),
        Line::from(format!(
            "IO: read {}/s ({}ops/s), write {}/s ({}ops/s)",
            human(sum(&|cs| cs.read_bytes_per_s)),
            sum(&|cs| cs.read_ops_per_s),
            human(sum(&|cs| cs.write_bytes_per_s)),
            sum(&|cs| cs.write_ops_per_s)
        )),
    ];
    let r = &stat.repair;
    if r.waiting + r.copying + r.without_place > 0 {
        let left = r.seconds_left.map_or("-".into(), tables::duration);
        lines.push(Line::from(format!(
            "Repair: {} wait, {} are copied, {} have no place, {} done at {:.1}/s, {left} left",
            r.waiting, r.copying, r.without_place, r.done, r.chunks_per_s
        )));
    }
    lines
}

fn draw_curves(frame: &mut Frame, area: Rect, model: &Model) {
    let halves: [Rect; 2] = Layout::horizontal([Constraint::Fill(1); 2]).spacing(2).areas(area);
    for (half, name, points, colour) in
        [(halves[0], "read", &model.reads, Color::Cyan), (halves[1], "write", &model.writes, Color::Magenta)]
    {
        let seen: Vec<u64> = points.iter().rev().take(half.width.into()).rev().copied().collect();
        let most = seen.iter().max().copied().unwrap_or(0);
        let [title, graph] = Layout::vertical([Constraint::Length(1), Constraint::Min(1)]).areas(half);
        frame.render_widget(Paragraph::new(format!("{name}, most {}/s", human(most)).dim()), title);
        frame.render_widget(Sparkline::default().data(&seen).style(Style::new().fg(colour)), graph);
    }
}

fn draw_tables(frame: &mut Frame, area: Rect, model: &Model) {
    let tables: Vec<(Pane, Grid)> = model.panes().into_iter().map(|pane| (pane, model.table(pane))).collect();
    // Each has a title and heads, and an empty line below if there is room for that.
    let wanted: Vec<u16> =
        tables.iter().map(|(_, grid)| (grid.rows.len().max(1) + 2).min(1 << 14) as u16).collect();
    let all: u32 = wanted.iter().map(|rows| u32::from(*rows) + 1).sum();
    let gap = u16::from(all <= u32::from(area.height) + 1 || area.height > 30);
    let heights = shares(&wanted, area.height.saturating_sub(gap * (tables.len() as u16 - 1)));
    let mut y = area.y;
    for ((pane, grid), height) in tables.iter().zip(heights) {
        draw_table(frame, Rect { y, height, ..area }, model, *pane, grid);
        y += height + gap;
    }
}

fn draw_table(frame: &mut Frame, area: Rect, model: &Model, pane: Pane, grid: &Grid) {
    // A title, heads and a row, or nothing.
    if area.height < 3 {
        return;
    }
    let [title, body] = Layout::vertical([Constraint::Length(1), Constraint::Min(1)]).areas(area);
    let chosen = pane == model.focus;
    let at = model.selected(pane, grid.rows.len());
    let mut name = pane.title().to_string();
    if pane == Pane::Cs {
        name += &format!(" ({})", model.cs_view.name());
    }
    let room = usize::from(body.height.saturating_sub(1));
    if grid.rows.len() > room {
        name += &format!(", {} of {}", at + 1, grid.rows.len());
    }
    let name = if chosen { Span::from(name).bold().underlined() } else { Span::from(name).bold() };
    frame.render_widget(Paragraph::new(name), title);
    if grid.rows.is_empty() {
        frame.render_widget(Paragraph::new("none".dim()), body);
        return;
    }
    let sorted = model.sorted_by(pane);
    let heads = grid.heads.iter().map(|head| match sorted {
        Some((by, inverse)) if by == *head => format!("{head}{}", if inverse { '▼' } else { '▲' }),
        _ => head.to_string(),
    });
    let heads: Vec<String> = heads.collect();
    let last = grid.heads.len() - 1;
    let widths = (0..grid.heads.len()).map(|column| {
        let cells = grid.rows.iter().map(|row| row.cells[column].text.chars().count());
        let widest = cells.max().unwrap_or(0).max(heads[column].chars().count()) as u16;
        if column == last { Constraint::Fill(1) } else { Constraint::Length(widest) }
    });
    // Only what can be seen is made: there may be thousands.
    let first = (at + 1).saturating_sub(room);
    let rows = grid.rows.iter().skip(first).take(room).map(|row| {
        Row::new(row.cells.iter().map(|cell| Cell::from(cell.text.clone()))).style(style(row.mood))
    });
    let table = Table::new(rows, widths)
        .column_spacing(2)
        .header(Row::new(heads).style(Style::new().dim()))
        .row_highlight_style(Style::new().reversed());
    let mut state = TableState::new().with_selected(chosen.then_some(at - first));
    frame.render_stateful_widget(table, body, &mut state);
}

fn draw_detail(frame: &mut Frame, area: Rect, model: &Model) {
    let facts = model.facts();
    let widest = facts.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let title = format!("{} (Enter: back)", model.focus.title());
    let mut lines = vec![Line::from(title).bold()];
    lines.extend(facts.iter().map(|(name, value)| Line::from(format!("{name:<widest$}  {value}"))));
    if facts.is_empty() {
        lines.push(Line::from("no row is chosen"));
    }
    // Facts in two columns where there is not room enough below each other.
    let room = usize::from(area.height).max(1);
    if lines.len() > room && area.width >= 80 {
        let right = lines.split_off(room.min(lines.len()));
        let halves: [Rect; 2] = Layout::horizontal([Constraint::Fill(1); 2]).spacing(1).areas(area);
        frame.render_widget(Paragraph::new(lines), halves[0]);
        frame.render_widget(Paragraph::new(right), halves[1]);
    } else {
        frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }), area);
    }
}

/// Divides `room` rows: who wants little gets it, the rest is shared evenly.
fn shares(wanted: &[u16], room: u16) -> Vec<u16> {
    let mut given = vec![0; wanted.len()];
    let mut room = room;
    while room > 0 {
        let hungry: Vec<usize> = (0..wanted.len()).filter(|n| given[*n] < wanted[*n]).collect();
        if hungry.is_empty() {
            break;
        }
        let each = (room / hungry.len() as u16).max(1);
        for n in hungry {
            let more = each.min(wanted[n] - given[n]).min(room);
            given[n] += more;
            room -= more;
        }
    }
    given
}

#[cfg(test)]
mod tests {
    use super::shares;

    #[test]
    fn rows_are_shared_evenly_and_none_is_wasted() {
        assert_eq!(shares(&[5, 3], 20), [5, 3]);
        assert_eq!(shares(&[5, 100, 3], 20), [5, 12, 3]);
        assert_eq!(shares(&[1000, 1000], 11), [6, 5]);
        assert_eq!(shares(&[4, 4, 4], 2), [1, 1, 0]);
        assert_eq!(shares(&[4], 0), [0]);
    }
}
