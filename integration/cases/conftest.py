"""The scenarios' MTAs run once for all of them."""

from collections.abc import Iterator, Mapping

import pytest

from integration.case_filters import CASE_FILTERS
from integration.case_mtas import (
    HOSTNAME,
    MILTERCHAIN,
    POSTFIX,
    SENDMAIL,
    make_milterchain,
    make_postfix,
    make_sendmail,
)
from integration.services.names import start_names
from integration.services.process import Run
from integration.services.tls import Certificates, make_certificates
from milterchain.testing.cases import FilterStarter, Mta, MtaTraits


def pytest_case_mtas() -> list[MtaTraits]:
    return [POSTFIX, SENDMAIL, MILTERCHAIN]


@pytest.fixture(scope="session")
def case_run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """The processes; their logs are shown if a scenario failed."""
    made = Run()
    try:
        start_names(made)
        yield made
    finally:
        made.close(failed=request.session.testsfailed > 0)


@pytest.fixture(scope="session")
def case_certificates(case_run: Run) -> Certificates:
    return make_certificates(case_run, HOSTNAME)


@pytest.fixture(scope="session")
def case_mta_postfix(case_run: Run, case_certificates: Certificates) -> Mta:
    return make_postfix(case_run, case_certificates)


@pytest.fixture(scope="session")
def case_mta_sendmail(case_run: Run, case_certificates: Certificates) -> Mta:
    return make_sendmail(case_run, case_certificates)


@pytest.fixture(scope="session")
def case_mta_milterchain(case_run: Run, case_certificates: Certificates) -> Mta:
    return make_milterchain(case_run, case_certificates)


@pytest.fixture(scope="session")
def case_filters() -> Mapping[str, FilterStarter]:
    return CASE_FILTERS
