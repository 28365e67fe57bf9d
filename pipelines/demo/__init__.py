"""The whole chain in minutes, on data that is drawn or cut out of photographs."""
