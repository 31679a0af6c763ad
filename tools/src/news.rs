//! The cluster looked at again and again, as `top` and `dashboard` do.

use crate::commands::stat::events_after;
use crate::mds_link::MdsLink;
use std::net::SocketAddr;
use wire::mds_api::{ClusterStat, Event, MdsReply, MdsRequest, mds_to_try};

/// What the metadata service said, or why it could not be asked.
pub struct News {
    pub stat: Result<Box<ClusterStat>, String>,
    /// Those that are new, the oldest first.
    pub events: Vec<Event>,
}

pub struct Watch {
    link: MdsLink,
    configured: Vec<SocketAddr>,
    /// Number of the last event that was told.
    last_event: u64,
}

impl Watch {
    pub fn new(link: MdsLink) -> Watch {
        Watch { configured: link.known().to_vec(), link, last_event: 0 }
    }

    pub fn look(&mut self) -> News {
        let stat = match self.link.ask(&MdsRequest::ClusterStat) {
            Ok(MdsReply::Stat(stat)) => Ok(stat),
            Ok(_) => Err("unexpected answer of the metadata server".into()),
            Err(why) => Err(why),
        };
        let Ok(stat) = stat else { return News { stat, events: Vec::new() } };
        // In the weeks that this may go on, servers come and go.
        let told: Vec<SocketAddr> = stat.mds.iter().map(|m| m.addr).collect();
        self.link.know(mds_to_try(&told, &self.configured));
        News { stat: Ok(stat), events: self.new_events() }
    }

    fn new_events(&mut self) -> Vec<Event> {
        let mut all: Vec<Event> = Vec::new();
        // What can't be asked now is asked next time.
        while let Ok((events, _)) = events_after(&mut self.link, self.last_event) {
            let Some(last) = events.last() else { break };
            self.last_event = last.number;
            all.extend(events);
        }
        all
    }
}
