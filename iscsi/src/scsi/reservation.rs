//! Persistent reservations (SPC-4, section 5.13): which initiators may use a unit. A plain value; who serves the unit stores it
//! whenever it has changed, so that it holds over restarts and on every gateway.

use super::cdb::PersistentOut;
use super::sense::{Attention, Sense};
use crate::Nexus;
use crate::pdu::padding_bytes;
use serde::{Deserialize, Serialize};

/// What a reservation keeps from others, as the standard numbers it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Kind {
    WriteExclusive = 1,
    ExclusiveAccess = 3,
    WriteExclusiveRegistrantsOnly = 5,
    ExclusiveAccessRegistrantsOnly = 6,
    WriteExclusiveAllRegistrants = 7,
    ExclusiveAccessAllRegistrants = 8,
}

use Kind::*;

impl Kind {
    fn from_number(number: u8) -> Option<Kind> {
        let all = [
            WriteExclusive,
            ExclusiveAccess,
            WriteExclusiveRegistrantsOnly,
            ExclusiveAccessRegistrantsOnly,
            WriteExclusiveAllRegistrants,
            ExclusiveAccessAllRegistrants,
        ];
        all.into_iter().find(|kind| *kind as u8 == number)
    }

    /// Every registrant holds it.
    fn is_of_all(self) -> bool {
        matches!(self, WriteExclusiveAllRegistrants | ExclusiveAccessAllRegistrants)
    }

    fn lets_registrants(self) -> bool {
        !matches!(self, WriteExclusive | ExclusiveAccess)
    }

    fn lets_readers(self) -> bool {
        matches!(self, WriteExclusive | WriteExclusiveRegistrantsOnly | WriteExclusiveAllRegistrants)
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Registrant {
    pub nexus: Nexus,
    pub key: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Held {
    /// Of kinds that all registrants hold: who made it.
    pub by: Nexus,
    pub kind: Kind,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Reservations {
    /// Counts changes of the registrations.
    pub generation: u32,
    /// Whether the initiators asked that this outlives a loss of power. It does in any case.
    pub through_power_loss: bool,
    pub registrants: Vec<Registrant>,
    pub held: Option<Held>,
}

/// What a command does to a unit, as reservations see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Allowed to everybody.
    Free,
    Read,
    Write,
    /// Of the unit's settings: for those who may write.
    Manage,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    Conflict,
    Sense(Sense),
}

/// The parameters of PERSISTENT RESERVE OUT.
struct Parameters {
    key: u64,
    action_key: u64,
    through_power_loss: bool,
}

const PARAMETER_BYTES: usize = 24;
/// The identifier of our only target port.
const PORT: u16 = 1;

impl Parameters {
    fn parse(list: &[u8], list_bytes: usize) -> Result<Parameters, Sense> {
        if list_bytes != PARAMETER_BYTES || list.len() < PARAMETER_BYTES {
            return Err(Sense::LIST_LENGTH);
        }
        let long = |at: usize| u64::from_be_bytes(list[at..at + 8].try_into().expect("8 bytes"));
        // SPEC_I_PT: registrations of others are not made. (ALL_TG_PT is of no consequence: there is one port.)
        if list[20] & 0x08 != 0 {
            return Err(Sense::INVALID_PARAMETER);
        }
        Ok(Parameters { key: long(0), action_key: long(8), through_power_loss: list[20] & 1 != 0 })
    }
}

/// Whom a change concerns, and what they are told.
pub type Told = Vec<(Nexus, Attention)>;

impl Reservations {
    fn key_of(&self, nexus: &Nexus) -> Option<u64> {
        self.registrants.iter().find(|r| r.nexus == *nexus).map(|r| r.key)
    }

    fn is_holder(&self, nexus: &Nexus) -> bool {
        let Some(held) = &self.held else { return false };
        if held.kind.is_of_all() { self.key_of(nexus).is_some() } else { held.by == *nexus }
    }

    pub fn allows(&self, nexus: &Nexus, access: Access) -> bool {
        let Some(held) = &self.held else { return true };
        let is_in = held.kind.lets_registrants() && self.key_of(nexus).is_some();
        access == Access::Free
            || held.by == *nexus
            || is_in
            || (access == Access::Read && held.kind.lets_readers())
    }

    /// Does what an initiator says. Nothing is changed if it is refused.
    pub fn change(
        &mut self,
        nexus: &Nexus,
        what: PersistentOut,
        scope_and_kind: u8,
        list: &[u8],
        list_bytes: usize,
    ) -> Result<Told, Refused> {
        let parameters = Parameters::parse(list, list_bytes).map_err(Refused::Sense)?;
        let kind = || {
            // The scope must be the whole unit.
            let kind = (scope_and_kind >> 4 == 0).then(|| Kind::from_number(scope_and_kind & 0x0f)).flatten();
            kind.ok_or(Refused::Sense(Sense::INVALID_FIELD))
        };
        let mut told = Vec::new();
        if !matches!(what, PersistentOut::Register | PersistentOut::RegisterAndIgnore)
            && self.key_of(nexus) != Some(parameters.key)
        {
            return Err(Refused::Conflict);
        }
        match what {
            PersistentOut::Register | PersistentOut::RegisterAndIgnore => {
                let ignores = what == PersistentOut::RegisterAndIgnore;
                self.register(nexus, &parameters, ignores, &mut told)?;
            }
            PersistentOut::Reserve => self.reserve(nexus, kind()?)?,
            PersistentOut::Release => self.release(nexus, kind()?, &mut told)?,
            PersistentOut::Clear => {
                self.tell_others(nexus, Attention::ReservationsPreempted, &mut told);
                self.registrants.clear();
                self.held = None;
                self.generation = self.generation.wrapping_add(1);
            }
            PersistentOut::Preempt | PersistentOut::PreemptAndAbort => {
                self.preempt(nexus, kind(), parameters.action_key, &mut told)?;
            }
        }
        Ok(told)
    }

    fn tell_others(&self, nexus: &Nexus, what: Attention, told: &mut Told) {
        let others = self.registrants.iter().filter(|r| r.nexus != *nexus);
        told.extend(others.map(|r| (r.nexus.clone(), what)));
    }

    fn register(
        &mut self,
        nexus: &Nexus,
        parameters: &Parameters,
        ignores: bool,
        told: &mut Told,
    ) -> Result<(), Refused> {
        let known = self.key_of(nexus);
        if !ignores && known.unwrap_or(0) != parameters.key {
            return Err(Refused::Conflict);
        }
        if known.is_none() && parameters.action_key == 0 {
            return Ok(());
        }
        if parameters.action_key == 0 {
            self.unregister(nexus, told);
        } else if let Some(registrant) = self.registrants.iter_mut().find(|r| r.nexus == *nexus) {
            registrant.key = parameters.action_key;
        } else {
            self.registrants.push(Registrant { nexus: nexus.clone(), key: parameters.action_key });
        }
        self.through_power_loss = parameters.through_power_loss;
        self.generation = self.generation.wrapping_add(1);
        Ok(())
    }

    fn unregister(&mut self, nexus: &Nexus, told: &mut Told) {
        self.registrants.retain(|r| r.nexus != *nexus);
        let Some(held) = &mut self.held else { return };
        if held.kind.is_of_all() {
            match self.registrants.first() {
                Some(next) if held.by == *nexus => held.by = next.nexus.clone(),
                Some(_) => {}
                None => self.held = None,
            }
        } else if held.by == *nexus {
            if held.kind.lets_registrants() {
                self.tell_others(nexus, Attention::ReservationsReleased, told);
            }
            self.held = None;
        }
    }

    fn reserve(&mut self, nexus: &Nexus, kind: Kind) -> Result<(), Refused> {
        match &self.held {
            None => {
                self.held = Some(Held { by: nexus.clone(), kind });
                Ok(())
            }
            Some(held) if held.kind == kind && self.is_holder(nexus) => Ok(()),
            Some(_) => Err(Refused::Conflict),
        }
    }

    fn release(&mut self, nexus: &Nexus, kind: Kind, told: &mut Told) -> Result<(), Refused> {
        let Some(held) = &self.held else { return Ok(()) };
        if !self.is_holder(nexus) {
            return Ok(());
        }
        if held.kind != kind {
            return Err(Refused::Sense(Sense::INVALID_RELEASE));
        }
        if kind.lets_registrants() {
            self.tell_others(nexus, Attention::ReservationsReleased, told);
        }
        self.held = None;
        Ok(())
    }

    fn preempt(
        &mut self,
        nexus: &Nexus,
        kind: Result<Kind, Refused>,
        action_key: u64,
        told: &mut Told,
    ) -> Result<(), Refused> {
        let held = self.held.clone();
        let takes_over = held.as_ref().is_some_and(|held| match held.kind.is_of_all() {
            true => action_key == 0,
            false => self.key_of(&held.by) == Some(action_key),
        });
        if action_key == 0 && !takes_over {
            return Err(Refused::Sense(Sense::INVALID_PARAMETER));
        }
        if !takes_over && !self.registrants.iter().any(|r| r.key == action_key) {
            return Err(Refused::Conflict);
        }
        let kind = if takes_over { Some(kind?) } else { None };
        // Zero: all others. The one who asks stays in any case, if it takes the reservation over.
        let goes =
            |r: &Registrant| (action_key == 0 || r.key == action_key) && !(takes_over && r.nexus == *nexus);
        let (gone, left): (Vec<_>, Vec<_>) = self.registrants.drain(..).partition(goes);
        self.registrants = left;
        told.extend(
            gone.iter()
                .filter(|r| r.nexus != *nexus)
                .map(|r| (r.nexus.clone(), Attention::RegistrationsPreempted)),
        );
        if let Some(kind) = kind {
            if held.is_some_and(|held| held.kind != kind) {
                self.tell_others(nexus, Attention::ReservationsReleased, told);
            }
            self.held = Some(Held { by: nexus.clone(), kind });
        } else if let Some(held) = &mut self.held
            && held.kind.is_of_all()
            && gone.iter().any(|r| r.nexus == held.by)
        {
            match self.registrants.first() {
                Some(next) => held.by = next.nexus.clone(),
                None => self.held = None,
            }
        }
        self.generation = self.generation.wrapping_add(1);
        Ok(())
    }

    // PERSISTENT RESERVE IN.

    fn head(&self, bytes: usize) -> Vec<u8> {
        [self.generation.to_be_bytes(), (bytes as u32).to_be_bytes()].concat()
    }

    pub fn keys(&self) -> Vec<u8> {
        let mut out = self.head(self.registrants.len() * 8);
        self.registrants.iter().for_each(|r| out.extend(r.key.to_be_bytes()));
        out
    }

    pub fn reservation(&self) -> Vec<u8> {
        let Some(held) = &self.held else { return self.head(0) };
        // One that all hold has no key.
        let key = if held.kind.is_of_all() { 0 } else { self.key_of(&held.by).unwrap_or(0) };
        let mut out = self.head(16);
        out.extend(key.to_be_bytes());
        out.extend([0, 0, 0, 0, 0, held.kind as u8, 0, 0]);
        out
    }

    pub fn capabilities(&self) -> Vec<u8> {
        // ATP_C (all target ports, of which there is one) and PTPL_C; which kinds are supported is told.
        vec![0, 8, 0x05, 0x80 | u8::from(self.through_power_loss), 0xea, 0x01, 0, 0]
    }

    pub fn full_status(&self) -> Vec<u8> {
        let mut all = Vec::new();
        for registrant in &self.registrants {
            let held = self.held.as_ref().filter(|_| self.is_holder(&registrant.nexus));
            let mut name = registrant.nexus.port().into_bytes();
            name.push(0);
            name.resize(name.len() + padding_bytes(name.len()), 0);
            name.resize(name.len().max(20), 0);
            all.extend(registrant.key.to_be_bytes());
            let kind = held.map_or(0, |held| held.kind as u8);
            all.extend([0, 0, 0, 0, u8::from(held.is_some()), kind, 0, 0, 0, 0]);
            all.extend(PORT.to_be_bytes());
            all.extend((name.len() as u32 + 4).to_be_bytes());
            // An iSCSI port by its name.
            all.extend([0x45, 0]);
            all.extend((name.len() as u16).to_be_bytes());
            all.extend(name);
        }
        [self.head(all.len()), all].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nexus(n: u8) -> Nexus {
        Nexus { initiator: format!("iqn.{n}"), isid: [n; 6] }
    }

    fn list(key: u64, action_key: u64) -> Vec<u8> {
        [&key.to_be_bytes()[..], &action_key.to_be_bytes(), &[0, 0, 0, 0, 1, 0, 0, 0]].concat()
    }

    fn ask(
        r: &mut Reservations,
        n: u8,
        what: PersistentOut,
        kind: u8,
        keys: (u64, u64),
    ) -> Result<Told, Refused> {
        r.change(&nexus(n), what, kind, &list(keys.0, keys.1), 24)
    }

    use PersistentOut::*;

    fn two() -> Reservations {
        let mut r = Reservations::default();
        ask(&mut r, 1, Register, 0, (0, 11)).unwrap();
        ask(&mut r, 2, RegisterAndIgnore, 0, (99, 22)).unwrap();
        r
    }

    #[test]
    fn keys_are_registered_and_checked() {
        let mut r = two();
        assert_eq!((r.generation, r.keys().len()), (2, 8 + 16));
        assert_eq!(ask(&mut r, 1, Register, 0, (0, 12)), Err(Refused::Conflict));
        ask(&mut r, 1, Register, 0, (11, 12)).unwrap();
        assert_eq!(ask(&mut r, 3, Register, 0, (5, 6)), Err(Refused::Conflict));
        assert_eq!(ask(&mut r, 3, Reserve, 1, (0, 0)), Err(Refused::Conflict));
        assert_eq!(ask(&mut r, 1, Reserve, 2, (12, 0)), Err(Refused::Sense(Sense::INVALID_FIELD)));
        assert_eq!(
            r.change(&nexus(1), Reserve, 1, &list(12, 0), 20),
            Err(Refused::Sense(Sense::LIST_LENGTH))
        );
        ask(&mut r, 1, Register, 0, (12, 0)).unwrap();
        assert_eq!(r.registrants.len(), 1);
        assert!(r.through_power_loss);
    }

    #[test]
    fn kinds_keep_away_whom_they_say() {
        // Holder, another registrant, a stranger: reads and writes.
        for (kind, registrant, stranger) in [
            (1, [true, false], [true, false]),
            (3, [false, false], [false, false]),
            (5, [true, true], [true, false]),
            (6, [true, true], [false, false]),
            (7, [true, true], [true, false]),
            (8, [true, true], [false, false]),
        ] {
            let mut r = two();
            ask(&mut r, 1, Reserve, kind, (11, 0)).unwrap();
            let may = |n| [r.allows(&nexus(n), Access::Read), r.allows(&nexus(n), Access::Write)];
            assert_eq!((may(1), may(2), may(3)), ([true, true], registrant, stranger), "kind {kind}");
            assert!(r.allows(&nexus(3), Access::Free));
        }
    }

    #[test]
    fn reservations_are_given_back_or_taken() {
        let mut r = two();
        ask(&mut r, 1, Reserve, 5, (11, 0)).unwrap();
        ask(&mut r, 1, Reserve, 5, (11, 0)).unwrap();
        assert_eq!(ask(&mut r, 2, Reserve, 5, (22, 0)), Err(Refused::Conflict));
        assert_eq!(ask(&mut r, 2, Release, 5, (22, 0)), Ok(vec![]));
        assert!(r.held.is_some(), "it is not his");
        assert_eq!(ask(&mut r, 1, Release, 1, (11, 0)), Err(Refused::Sense(Sense::INVALID_RELEASE)));
        assert_eq!(
            ask(&mut r, 1, Release, 5, (11, 0)),
            Ok(vec![(nexus(2), Attention::ReservationsReleased)])
        );
        ask(&mut r, 1, Reserve, 3, (11, 0)).unwrap();
        let told = ask(&mut r, 2, Preempt, 1, (22, 11)).unwrap();
        assert_eq!(told, [(nexus(1), Attention::RegistrationsPreempted)]);
        assert_eq!(r.held, Some(Held { by: nexus(2), kind: WriteExclusive }));
        assert_eq!(ask(&mut r, 2, Preempt, 1, (22, 77)), Err(Refused::Conflict));
        assert_eq!(ask(&mut r, 2, Preempt, 1, (22, 0)), Err(Refused::Sense(Sense::INVALID_PARAMETER)));
        ask(&mut r, 2, Clear, 0, (22, 0)).unwrap();
        assert_eq!((r.registrants.len(), r.held.clone()), (0, None));

        // What all hold stays until the last one has gone.
        let mut r = two();
        ask(&mut r, 1, Reserve, 8, (11, 0)).unwrap();
        ask(&mut r, 1, Register, 0, (11, 0)).unwrap();
        assert!(!r.allows(&nexus(1), Access::Read) && r.allows(&nexus(2), Access::Write));
        ask(&mut r, 2, Register, 0, (22, 0)).unwrap();
        assert_eq!(r.held, None);
    }

    #[test]
    fn golden_status() {
        let mut r = two();
        ask(&mut r, 2, Reserve, 5, (22, 0)).unwrap();
        assert_eq!(
            r.reservation(),
            [0, 0, 0, 2, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 22, 0, 0, 0, 0, 0, 5, 0, 0]
        );
        let full = r.full_status();
        assert_eq!(full.len(), 8 + 2 * (24 + 4 + 24));
        assert_eq!(full[8 + 52 + 12..8 + 52 + 14], [1, 5]);
        assert_eq!(&full[8 + 24..8 + 28], [0x45, 0, 0, 24]);
        assert!(full[8 + 28..].starts_with(b"iqn.1,i,0x010101010101\0"));
        let kept: Reservations = serde_json::from_str(&serde_json::to_string(&r).unwrap()).unwrap();
        assert_eq!(kept, r);
    }

    proptest! {
        /// Whatever initiators do: who holds a reservation is registered, and nobody is registered twice.
        #[test]
        fn holders_are_registrants(steps in proptest::collection::vec((0..3u8, 0..7u8, 0..10u8, 0..4u64, 0..4u64), 0..60)) {
            let mut r = Reservations::default();
            for (n, what, kind, key, action_key) in steps {
                let what = [Register, Reserve, Release, Clear, Preempt, PreemptAndAbort, RegisterAndIgnore][usize::from(what)];
                let before = r.clone();
                if ask(&mut r, n, what, kind, (key, action_key)).is_err() {
                    prop_assert_eq!(&before, &r, "refused, and changed");
                }
                if let Some(held) = &r.held {
                    prop_assert!(r.key_of(&held.by).is_some());
                }
                let mut names: Vec<_> = r.registrants.iter().map(|r| &r.nexus).collect();
                names.sort();
                names.dedup();
                prop_assert_eq!(names.len(), r.registrants.len());
                prop_assert!(r.registrants.iter().all(|r| r.key != 0));
                let _ = (r.keys(), r.reservation(), r.full_status());
            }
        }
    }
}
