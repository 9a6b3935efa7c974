"""`adm service`."""


def service() -> None:
    """Serve HTTP: jobs, images, events, metrics and the page, on ADM_HOST and ADM_PORT."""
    from service.main import main

    main()
