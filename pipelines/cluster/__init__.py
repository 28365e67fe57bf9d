"""Ray on this machine or a cluster, and the cluster's job server."""
