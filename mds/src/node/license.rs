//! The cluster's licence: loaded, watched, told of. One that has ended stops new chunks and nothing else (`wire::license`).

use super::server::Server;
use crate::state::{Command, Op};
use shards::{ConnId, Io};
use wire::license::{LicenseStatus, SignedLicense, key_text};
use wire::mds_api::{LicenseInfo, MdsReply, Severity};
use wire::{ClientId, Head, Status};

impl Server {
    pub(super) fn load_license(
        &mut self,
        conn: ConnId,
        head: Head,
        text: &str,
        renew: bool,
        io: &mut dyn Io,
    ) {
        match self.believed(text) {
            Ok(license) => {
                let op = Op::LoadLicense { license: Box::new(license), renew };
                let (client, request) = (ClientId(0), head.request);
                let command = Command::Client { client, request, time_ms: io.wall_ms(), op };
                self.mutate(conn, head, &command, io);
            }
            Err(detail) => self.refuse(conn, head, false, Status::InvalidArgument, detail, None, io),
        }
    }

    fn believed(&self, text: &str) -> Result<SignedLicense, String> {
        let signed = SignedLicense::parse(text).map_err(|why| format!("this is no valid licence: {why}"))?;
        if !self.config.license_makers.contains(&signed.maker) {
            return Err(format!(
                "this licence was made by somebody unknown here, with key {}. If that is who provides your software, put the key \
                 into ETC/license-makers on the hosts of the metadata servers, and restart these one by one",
                key_text(&signed.maker)
            ));
        }
        let (cluster, mine) = (&signed.license.cluster, &self.config.control.cluster);
        if !cluster.is_empty() && cluster != mine {
            return Err(format!("this licence is for cluster '{cluster}', not for '{mine}'"));
        }
        Ok(signed)
    }

    fn license_info(&self, io: &mut dyn Io) -> LicenseInfo {
        let used_bytes = self.fs_stat(io.now()).used_bytes;
        let license = self.state.license().cloned();
        let status = license
            .as_ref()
            .map_or(LicenseStatus::Free, |l| l.license.status(io.wall_ms() / 1000, used_bytes));
        LicenseInfo { status, license, used_bytes }
    }

    pub(super) fn get_license(&self, io: &mut dyn Io) -> MdsReply {
        MdsReply::License(Box::new(self.license_info(io)))
    }

    /// Looks how it stands, and tells when that changes for the worse, or back.
    pub(super) fn watch_license(&mut self, io: &mut dyn Io) {
        let status = match self.state.license() {
            None => LicenseStatus::Free,
            Some(_) => self.license_info(io).status,
        };
        let Some(master) = &mut self.master else { return };
        let before = std::mem::replace(&mut master.license, status);
        if before == status || (status.is_well() && before.is_well()) {
            return;
        }
        let severity = match status {
            _ if status.is_well() => Severity::Info,
            LicenseStatus::Graced => Severity::Warn,
            _ => Severity::Err,
        };
        self.log_event("MDS", severity, format!("The license is {}", status.explained()), io);
    }
}
