//! A node that is restored: its agent, its marker and its folder.

use sheetanchor_core::agent::{self, Agent, Belonging};
use sheetanchor_core::error::Result;
use sheetanchor_core::identity::{self, Epoch, LifeId, NodeId, OperationId, ThreadId, TimelineId};
use sheetanchor_core::position::Position;
use sheetanchor_core::refusal::{Code, Refusal};
use sheetanchor_core::request::{Answer, Request};
use sheetanchor_core::scn::Scn;
use sheetanchor_core::time::Moment;

use super::{CUT, Fault, Incarnation};
use crate::{belonging, header, replied};

/// What an agent reads in the repository before it acts for a restore.
#[derive(Clone, Copy)]
pub struct Repository {
    pub restore: usize,
    /// The term that the restore is in.
    pub epoch: Epoch,
    /// The number that the restore means to open, and what stands under it.
    pub object: Option<(u32, Incarnation)>,
    /// Whether the node has opened for this restore.
    pub opened: bool,
    /// The highest number that was opened.
    pub newest: Option<u32>,
}

impl Repository {
    fn is_decided(&self) -> bool {
        self.object.is_some_and(|(_, object)| object.opened && object.restore == self.restore)
    }
}

/// What a node's data folder holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Folder {
    /// The restore that has staged it.
    by: usize,
    reached: bool,
    open_in: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    id: NodeId,
    agent: Agent,
    /// Durable: the restore that the node is in the middle of.
    marker: Option<usize>,
    folder: Option<Folder>,
}

fn refuse<T>(code: Code) -> Result<T> {
    Err(Refusal::new(code, "refused").into())
}

impl Node {
    /// A node that has lost everything, even its cluster.
    pub fn new(id: NodeId) -> Self {
        Self { id, agent: Agent::new(id, None), marker: None, folder: None }
    }

    pub fn has_reached(&self, restore: usize) -> bool {
        self.folder.is_some_and(|folder| folder.by == restore && folder.reached)
    }

    /// The incarnation that it is open in, and the restore whose files it has.
    pub fn open_in(&self) -> Option<(u32, usize)> {
        self.folder.and_then(|folder| Some((folder.open_in?, folder.by)))
    }

    pub fn is_empty(&self) -> bool {
        self.folder.is_none()
    }

    pub fn restart(&mut self) {
        self.agent = Agent::new(self.id, self.agent.belonging());
    }

    /// Enlists, then asks, as the engine does with every request of a restore. Also says whose folder was removed.
    pub fn answer(
        &mut self,
        operation: OperationId,
        epoch: Epoch,
        request: &Request,
        repository: &Repository,
        fault: Fault,
    ) -> (Result<Answer>, Option<usize>) {
        let mut removed = None;
        let enlisted = self.ask(operation, epoch, &Request::Enlist { fence: false }, repository, fault, &mut removed);
        let answer = match enlisted {
            Ok(_) => self.ask(operation, epoch, request, repository, fault, &mut removed),
            Err(error) => Err(error),
        };
        (answer, removed)
    }

    fn ask(
        &mut self,
        operation: OperationId,
        epoch: Epoch,
        request: &Request,
        repository: &Repository,
        fault: Fault,
        removed: &mut Option<usize>,
    ) -> Result<Answer> {
        let now = Moment::default();
        let header = header(self.id, operation, epoch);
        for effect in self.agent.step(now, agent::Event::Asked(1, header, request.clone())) {
            match effect {
                agent::Effect::Reply(_, answer) => return answer,
                agent::Effect::Perform(ticket, _, request) => {
                    let outcome = self.perform(&request, repository, fault, removed);
                    let effects = self.agent.step(now, agent::Event::Performed(ticket, outcome));
                    return replied(effects);
                }
                agent::Effect::Free(_) | agent::Effect::DropPin(_) => {}
            }
        }
        panic!("every request is answered")
    }

    fn perform(
        &mut self,
        request: &Request,
        repository: &Repository,
        fault: Fault,
        removed: &mut Option<usize>,
    ) -> Result<Answer> {
        let own = repository.restore;
        match request {
            Request::Enlist { .. } => Ok(Answer::Enlisted { life: LifeId::new(1), epoch: repository.epoch }),
            Request::Stage { .. } => match (self.marker, self.folder) {
                (None, Some(_)) if repository.is_decided() => Ok(Answer::Done),
                (None, Some(_)) => refuse(Code::FolderNotEmpty),
                (None, None) if repository.is_decided() && repository.opened && fault != Fault::StagesOpenedAgain => {
                    refuse(Code::LostAfterOpening)
                }
                (None, None) => {
                    self.marker = Some(own);
                    self.folder = Some(Folder { by: own, reached: false, open_in: None });
                    Ok(Answer::Done)
                }
                (Some(other), _) if other != own => {
                    if fault != Fault::TakesNextNumber {
                        return refuse(Code::OtherRestore);
                    }
                    self.marker = Some(own);
                    self.folder = Some(Folder { by: own, reached: false, open_in: None });
                    Ok(Answer::Done)
                }
                (Some(_), _) => Ok(Answer::Done),
            },
            Request::Recover { .. } => match (self.marker, &mut self.folder) {
                (Some(marker), _) if marker != own => refuse(Code::OtherRestore),
                (Some(_), Some(folder)) => {
                    folder.reached = true;
                    Ok(Answer::Done)
                }
                (None, _) if repository.is_decided() => Ok(Answer::Done),
                _ => refuse(Code::OutOfOrder),
            },
            Request::Prove { .. } => {
                self.check_folder(own, fault)?;
                if repository.opened && self.folder.is_some_and(|folder| folder.open_in.is_some()) {
                    return Ok(Answer::Done);
                }
                if self.folder.is_some_and(|folder| folder.reached) || fault == Fault::ProvesUnrecovered {
                    let (thread, timeline) = (ThreadId::of(self.id), TimelineId::new(1));
                    return Ok(Answer::Reached {
                        scn: Scn::new(9),
                        until: Position { thread, timeline, lsn: CUT },
                        in_doubt: Vec::new(),
                    });
                }
                refuse(Code::DatabaseDown)
            }
            Request::Open { .. } => self.open(repository, fault),
            Request::Discard => {
                if self.marker != Some(own) {
                    return Ok(Answer::Done);
                }
                let decided = repository.object.map(|(_, object)| object);
                if decided.is_none_or(|object| object.opened && object.restore == own) {
                    return refuse(Code::OutOfOrder);
                }
                self.marker = None;
                *removed = self.folder.take().map(|folder| folder.by);
                Ok(Answer::Done)
            }
            other => panic!("a restore does not ask to {}", other.word()),
        }
    }

    /// What lies in the folder must not be another restore's.
    fn check_folder(&self, own: usize, fault: Fault) -> Result<()> {
        let looks = !matches!(fault, Fault::OpensAnyFolder | Fault::TakesNextNumber);
        if looks && self.marker.is_some_and(|marker| marker != own) {
            return refuse(Code::OtherRestore);
        }
        Ok(())
    }

    fn open(&mut self, repository: &Repository, fault: Fault) -> Result<Answer> {
        let (number, object) = match repository.object {
            None => return refuse(Code::Missing),
            Some((_, object)) if !object.opened => return refuse(Code::Aborted),
            Some((_, object)) if object.restore != repository.restore => return refuse(Code::IncarnationTaken),
            Some(found) => found,
        };
        self.check_folder(object.restore, fault)?;
        let looks = !matches!(fault, Fault::TakesNextNumber);
        if looks && repository.newest.is_some_and(|newest| newest > number) {
            return refuse(Code::OtherIncarnation);
        }
        match &mut self.folder {
            Some(folder) if folder.open_in.is_some_and(|open| open != number) => refuse(Code::OtherIncarnation),
            Some(folder) if folder.reached => {
                folder.open_in = Some(number);
                self.marker = None;
                let incarnation = identity::Incarnation::new(number);
                self.agent.step(Moment::default(), agent::Event::Belongs(Belonging { incarnation, ..belonging() }));
                Ok(Answer::Done)
            }
            Some(_) | None => refuse(Code::DatabaseDown),
        }
    }
}
