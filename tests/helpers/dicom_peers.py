"""DICOM peers of a node: a PACS and a scanner of pynetdicom's, and one that speaks in bytes. Needs pynetdicom."""

import io
import socket
import struct
import time
from pathlib import Path

import numpy as np
import pydicom
import pynetdicom
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode

from .dicom_series import plant, write_series
from .packages import make_scan


class Pacs:
    """A PACS of pynetdicom's: the objects it was sent, in their order. It can be away, and lose its answers."""

    def __init__(self, port: int):
        self.port, self.objects, self.statuses, self._server = port, [], [], None

    def start(self) -> None:
        entity = pynetdicom.AE(ae_title="PACS")
        entity.supported_contexts = pynetdicom.AllStoragePresentationContexts
        handlers = [(pynetdicom.evt.EVT_C_STORE, self._store)]
        self._server = entity.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)  # type: ignore[arg-type]

    def _store(self, event) -> int:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        self.objects.append(dataset)
        return self.statuses.pop(0) if self.statuses else 0

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()


def write_ct(folder: Path, *, seed: int = 3) -> list[Path]:
    stored = make_scan(seed).array[0].astype(np.int16) + 1024
    return write_series(folder, stored, spacing=(2.0, 1.5, 1.4), change=lambda dataset, _: plant(dataset))


def send(port: int, files: list[Path], *, title: str = "SCANNER", break_off: bool = False) -> list[int | None]:
    """The statuses with which a node accepts objects; none when it does not let us in."""
    entity = pynetdicom.AE(ae_title=title)
    for file in files:
        header = pydicom.dcmread(file, stop_before_pixels=True)
        entity.add_requested_context(header.SOPClassUID, header.file_meta.TransferSyntaxUID)
    association = entity.associate("127.0.0.1", port, ae_title="SAMKD")
    if not association.is_established:
        return []
    statuses = [association.send_c_store(file).get("Status") for file in files]
    association.abort() if break_off else association.release()
    return statuses


def recorded(port: int, file: Path) -> list[bytes]:
    """The PDUs that store one object: A-ASSOCIATE-RQ, the P-DATA-TF of its command and of its data, A-RELEASE-RQ."""
    sent: list[bytes] = []
    entity = pynetdicom.AE(ae_title="SCANNER")
    header = pydicom.dcmread(file, stop_before_pixels=True)
    entity.add_requested_context(header.SOPClassUID, header.file_meta.TransferSyntaxUID)
    handlers = [(pynetdicom.evt.EVT_DATA_SENT, lambda event: sent.append(event.data))]
    association = entity.associate("127.0.0.1", port, ae_title="SAMKD", evt_handlers=handlers)  # type: ignore[arg-type]
    assert association.send_c_store(file).Status == 0
    association.release()
    assert [pdu[0] for pdu in sent] == [1, 4, 4, 5]
    return sent


def connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.settimeout(5)
    return connection


def ended(connection: socket.socket, seconds: float = 5) -> bool:
    """Whether the node ends a connection in time; what it says before that is read and forgotten."""
    end = time.monotonic() + seconds
    try:
        while (left := end - time.monotonic()) > 0:
            connection.settimeout(left)
            if not connection.recv(1 << 16):
                return True
    except TimeoutError:
        return False
    except OSError:
        return True
    return False


def associated(port: int, request: bytes) -> socket.socket:
    """A connection on which the node has accepted an association."""
    connection = connect(port)
    connection.sendall(request)
    assert connection.recv(1 << 16)[0] == 2
    return connection


def p_data(context: int, content: bytes, *, last: bool = False, command: bool = False) -> bytes:
    value = struct.pack(">LBB", len(content) + 2, context, 2 * last + command) + content
    return struct.pack(">BBL", 4, 0, len(value)) + value


def store(port: int, file: Path, encoded: bytes, *, uid: str | None = None) -> int | None:
    """The status with which the node answers a C-STORE of these bytes, in the name of a file or of another UID."""
    header = pydicom.dcmread(file, stop_before_pixels=True)
    entity = pynetdicom.AE(ae_title="SCANNER")
    entity.add_requested_context(header.SOPClassUID, header.file_meta.TransferSyntaxUID)
    association = entity.associate("127.0.0.1", port, ae_title="SAMKD")
    association._reactor_checkpoint.clear()  # or its thread takes the answer
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID = header.SOPClassUID
    request.AffectedSOPInstanceUID = header.SOPInstanceUID if uid is None else uid
    request.DataSet = io.BytesIO(encoded)
    association.dimse.send_msg(request, association.accepted_contexts[0].context_id)  # type: ignore[arg-type]
    _, answer = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    association.release()
    return None if answer is None else answer.Status


def encoded(file: Path) -> bytes:
    """The data set of a file in explicit VR, little endian, without its preamble and its meta group."""
    content = encode(pydicom.dcmread(file), False, True)
    assert content is not None
    return content
