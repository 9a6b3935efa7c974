"""`adm worker`."""


def worker() -> None:
    """Claim jobs from Redis and make their images, on one device."""
    from worker.main import main

    main()
