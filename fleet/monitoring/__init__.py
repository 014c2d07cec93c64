"""Files for Prometheus, Alertmanager and Grafana: `fleet monitoring write`."""
